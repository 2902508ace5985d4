"""From the file names in an annotation file to paths, none of which leaves the image folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

OTHER_SEPARATORS = ("\\", "%2F", "%2f", "%5C", "%5c")
"""What file names hold in place of ``/``."""


@dataclass(frozen=True)
class FileFault:
    """A file name that cannot be used.

    Attributes:
        index: position of the name in the list given.
        code: D17 (no such file), X01 (leaves the folder) or X02 (absolute).
        what: the end of the message.
    """

    index: int
    code: str
    what: str


@dataclass(frozen=True)
class _Listing:
    inside: bool
    files: dict[str, bool]  # name -> is a symbolic link


class ImageFolder:
    """The files below one folder, listed once for each directory that is asked for.

    Args:
        root: the folder.
        allow_outside: accept absolute names, ``..`` and links that lead out of the folder.
        must_exist: report files that are not there.
    """

    def __init__(self, root: Path, *, allow_outside: bool, must_exist: bool) -> None:
        self.root = root
        self.allow_outside = allow_outside
        self.must_exist = must_exist
        self._real_root = os.path.realpath(root)
        self._listings: dict[str, _Listing] = {}
        self._canonical: dict[str, dict[str, str]] = {}

    def name_on_disk(self, name: str) -> str:
        """Return a file name with ``/`` in place of its separators if no other reading of it exists, else as it is.

        Exporters write the separator of their system, or encode it as in an address.
        """
        if not self.must_exist or not any(other in name for other in OTHER_SEPARATORS) or self._is_file(name):
            return name
        readings = {name.replace(other, "/") for other in OTHER_SEPARATORS if other in name}
        found = [reading for reading in sorted(readings) if self._is_file(reading)]
        return found[0] if len(found) == 1 else name

    def hint(self, name: str) -> str:
        """Return which file of the folder is nearly called so, as the end of a message; empty if there is none."""
        parent, base = os.path.split(name)
        for folder in (parent, ""):
            known = self._canonical.get(folder)
            if known is None:
                files = self._listed(folder).files if self._contains(self.root / folder) else {}
                known = self._canonical[folder] = {_canonical(entry): entry for entry in files}
            if _canonical(base) in known:
                return f"; there is {self.root / folder / known[_canonical(base)]}"
        return ""

    def _is_file(self, name: str) -> bool:
        return self._check(name) is None

    def check(self, names: Sequence[str]) -> list[FileFault]:
        """Return the faults of names that must not be opened, in the order of the names."""
        faults = ((i, self._check(name)) for i, name in enumerate(names))
        return [FileFault(i, *fault) for i, fault in faults if fault is not None]

    def _check(self, name: str) -> tuple[str, str] | None:
        if "\0" in name:
            return "X01", "file_name holds a null character"
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            return "D17", f"file_name {name!a} cannot be the name of a file"
        if os.path.isabs(name) and not self.allow_outside:
            return "X02", f"file_name {name} is absolute; allowed with --allow-outside only"
        parent, base = os.path.split(name)
        if base == "..":
            parent, base = name, ""
        listing = self._listed(parent)
        leaves = not listing.inside or (listing.files.get(base, False) and not self._contains(self.root / name))
        if leaves and not self.allow_outside:
            return "X01", f"file_name {name} leads out of {self.root}; allowed with --allow-outside only"
        if self.must_exist and base not in listing.files:
            return "D17", f"no image file {self.root / name}"
        return None

    def _contains(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real_root or real.startswith(os.path.join(self._real_root, ""))

    def _listed(self, parent: str) -> _Listing:
        listing = self._listings.get(parent)
        if listing is None:
            listing = self._listings[parent] = self._list(parent)
        return listing

    def _list(self, parent: str) -> _Listing:
        directory = self.root / parent
        inside = self._contains(directory)
        if not inside and not self.allow_outside:
            return _Listing(False, {})
        try:
            with os.scandir(directory) as entries:
                return _Listing(inside, {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)})
        except OSError:
            return _Listing(inside, {})


def _canonical(name: str) -> str:
    """Return what a name has in common with those that exporters make of it: other case, encoding, folder, ending."""
    base = PureWindowsPath(unquote(name)).name  # parts at both separators
    return unicodedata.normalize("NFKC", os.path.splitext(base)[0]).casefold().strip()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False
