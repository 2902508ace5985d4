"""Names of parameters in two layouts, as pairs of patterns that are read in either direction.

In a pair, both of whose patterns have the same wildcards, ``#`` stands for a number, ``@`` for 1 or 2, and ``*`` for
the rest of the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

Rules: TypeAlias = tuple[tuple[re.Pattern[str], str], ...]
"""What a name must match, and what it becomes."""


def rules(pairs: Iterable[tuple[str, str]]) -> Rules:
    """Return what turns names of the first pattern of each pair into names of its second."""
    return tuple((_pattern(old), _template(new)) for old, new in pairs)


def swapped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs for the other direction."""
    return [(second, first) for first, second in pairs]


def rename(name: str, rules: Rules) -> str | None:
    """Return what the first rule that matches makes of a name, or None."""
    for pattern, template in rules:
        if match := pattern.match(name):
            return match.expand(template)
    return None


def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\#", r"(\d+)").replace("@", "([12])").replace(r"\*", "(.*)")
    return re.compile(f"^{escaped}$")


def _template(text: str) -> str:
    pieces = re.split(r"[#@*]", text)
    return "".join(piece + (f"\\g<{i + 1}>" if i + 1 < len(pieces) else "") for i, piece in enumerate(pieces))
