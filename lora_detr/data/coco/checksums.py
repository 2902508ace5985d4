"""Lists of checksums as ``sha256sum`` writes them."""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from lora_detr.errors import DataError
from lora_detr.regular_files import read_regular

SHA256SUMS = "SHA256SUMS"
"""Name of the list in an image folder."""

MAX_BYTES = 1_000_000_000
"""Of the list: a hundred bytes for each of ten million images."""

# A backslash in front says that backslashes and line ends in the name are escaped.
_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_ESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def read_sums(folder: Path) -> dict[str, bytes]:
    """Return the SHA-256 of each file that the list in a folder names, by name relative to the folder.

    Raises:
        DataError: D20, there is no list, or a line of it is none of ``sha256sum``'s; names the line.
    """
    path = folder / SHA256SUMS
    try:
        lines = read_regular(path, MAX_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: the list of checksums cannot be read: {error.strerror}; in its folder sha256sum * > {SHA256SUMS} "
            "writes it",
            "write it once, while the images are known to be good",
            code="D20",
        ) from error
    sums = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise DataError(
                f"{path}:{number}: expected a SHA-256, two characters and a file name, found {line[:40]!r}",
                "write the list with sha256sum",
                code="D20",
            )
        escaped, digest, name = found.groups()
        if escaped:
            name = re.sub(r"\\[\\nr]", lambda pair: _ESCAPED[pair[0]], name)
        sums[os.path.normpath(name)] = bytes.fromhex(digest)
    return sums
