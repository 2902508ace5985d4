"""Write settings as YAML that reads back as the same values, and compare two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from lora_detr.config.tree import is_within, join
from lora_detr.config.yaml_subset import parse_scalar
from lora_detr.json_value import JSON

LONGEST_ALIGNED = 44
"""Columns of the longest line that ``dump_aligned`` moves the comments of others for: eighty hold most lines then."""

ABSENT = "<absent>"
"""What ``diff_configs`` shows for a key that only the other side has."""

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*")


def as_tree(config: BaseModel) -> dict[str, JSON]:
    """Return all values of a config as plain data, in the order in which the schema declares them."""
    tree: dict[str, JSON] = config.model_dump(mode="json")
    return tree


def dump_config(config: BaseModel, origin: Mapping[str, str] | None = None) -> str:
    """Return ``config`` as YAML.

    Args:
        config: the settings, written in the order of the schema; reading the text gives the same config.
        origin: key path -> where the value came from, written as a comment behind the value.
    """
    return dump_tree(as_tree(config), origin)


def dump_tree(tree: Mapping[str, JSON], origin: Mapping[str, str] | None = None) -> str:
    """Return plain values as YAML, as ``dump_config`` does with a config; an empty mapping gives an empty text."""
    return "".join(line + "\n" for line in _lines(tree, "", "", origin or {}))


def dump_aligned(tree: Mapping[str, JSON], origin: Mapping[str, str]) -> str:
    """Return ``dump_tree`` with the comments in one column; lines longer than ``LONGEST_ALIGNED`` stand out of it."""
    values, lines = dump_tree(tree).split("\n"), dump_tree(tree, origin).split("\n")
    comments = [line.removeprefix(value) for value, line in zip(values, lines, strict=True)]
    widths = [len(value) for value, comment in zip(values, comments, strict=True) if comment]
    column = max((width for width in widths if width <= LONGEST_ALIGNED), default=0)
    pairs = zip(values, comments, strict=True)
    return "\n".join(f"{value:<{column}}{comment}" if comment else value for value, comment in pairs)


def dump_value(value: JSON) -> str:
    """Return a value of ``diff_configs`` as it stands behind its key: no mapping and no list of them, unless empty."""
    return _inline(value)


def diff_configs(a: BaseModel, b: BaseModel) -> list[tuple[str, JSON, JSON]]:
    """Return (key path, value in a, value in b) wherever they differ, in the order of ``a``, then of ``b``.

    A list of plain values is one value. Where one side has an empty list or mapping and the other has items, the items
    alone are listed.
    """
    left, right = dict(_leaves(as_tree(a), "")), dict(_leaves(as_tree(b), ""))
    paths = list(left) + [path for path in right if path not in left]
    pairs = ((path, left.get(path, ABSENT), right.get(path, ABSENT)) for path in paths)
    differing = [(path, x, y) for path, x, y in pairs if type(x) is not type(y) or x != y]
    sections = {parent for path in paths for parent in _parents(path)}
    return [(path, x, y) for path, x, y in differing if path not in sections or not (_is_empty(x) or _is_empty(y))]


def _is_empty(value: JSON) -> bool:
    return isinstance(value, dict | list) and not value


def _leaves(value: JSON, path: str) -> Iterator[tuple[str, JSON]]:
    """Yield (key path, value) of all that stands on one line of ``dump_config``."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, join(path, key))
    elif isinstance(value, list) and _needs_lines(value):
        for i, item in enumerate(value):
            yield from _leaves(item, join(path, i))
    else:
        yield path, value


def _needs_lines(items: list[JSON]) -> bool:
    return any(isinstance(item, dict | list) and item for item in items)


def _parents(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _lines(tree: Mapping[str, JSON], path: str, indent: str, origin: Mapping[str, str]) -> Iterator[str]:
    for key, value in tree.items():
        here, name = join(path, key), _key(key)
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _lines(value, here, indent + "  ", origin)
        elif isinstance(value, list) and _needs_lines(value):
            yield f"{indent}{name}:"
            yield from _items(value, here, indent + "  ", origin)
        else:
            yield f"{indent}{name}: {_inline(value)}{_comment(here, origin)}"


def _items(items: list[JSON], path: str, indent: str, origin: Mapping[str, str]) -> Iterator[str]:
    for i, item in enumerate(items):
        here = join(path, i)
        if isinstance(item, dict) and item:
            inner = list(_lines(item, here, indent + "  ", origin))
        elif isinstance(item, list) and _needs_lines(item):
            inner = list(_items(item, here, indent + "  ", origin))
        else:
            inner = [f"{indent}  {_inline(item)}{_comment(here, origin)}"]
        yield f"{indent}- {inner[0][len(indent) + 2 :]}"
        yield from inner[1:]


def _comment(path: str, origin: Mapping[str, str]) -> str:
    sources = list(dict.fromkeys(source for known, source in origin.items() if is_within(known, path)))
    return "  # " + ", ".join(" ".join(source.split()) for source in sources) if sources else ""


def _inline(value: JSON) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _text(value)


def _key(key: str) -> str:
    return key if _PLAIN.fullmatch(key) else _quoted(key)


def _text(value: str) -> str:
    return value if _PLAIN.fullmatch(value) and parse_scalar(value) == value else _quoted(value)


def _quoted(value: str) -> str:
    return '"' + "".join(_escaped(char) for char in value) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\U{ord(char):08x}"
