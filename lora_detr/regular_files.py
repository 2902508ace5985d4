"""Open files by names that others chose: regular files alone, and no more of them than is expected.

A pipe may never give a byte, and a device may never end. Opening either by mistake would hang, or fill the memory.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_SMALL = 1 << 16

_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path | str, limit: int | None = None) -> BufferedReader:
    """Open a file for reading; links are followed, and what they lead to is what counts.

    Args:
        path: of the file.
        limit: bytes that it may have at most; None for any number.

    Raises:
        OSError: the system refuses, it is no regular file, or it is larger.
    """
    _refuse(os.stat(path), path, limit)  # opening a device may do something by itself
    # Whatever has taken its place since must not be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse(os.fstat(descriptor), path, limit)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path | str, limit: int) -> bytes:
    """Return the content of a file of at most ``limit`` bytes; errors as of ``open_regular``."""
    with open_regular(path, limit) as file:
        content = file.read(min(limit + 1, _SMALL))  # asking for more takes the memory at once
        if len(content) == _SMALL:
            content += file.read(limit + 1 - _SMALL)
    if len(content) > limit:  # some files of the system have no size that they admit
        raise _too_large(path, f"more than {limit:,} bytes", limit)
    return content


def check_regular(path: Path | str, limit: int | None = None) -> None:
    """Refuse a file as ``open_regular`` does, for libraries that take a path alone."""
    open_regular(path, limit).close()


def _refuse(found: os.stat_result, path: Path | str, limit: int | None) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"expected a regular file, found {kind}", str(path))
    if limit is not None and found.st_size > limit:
        raise _too_large(path, f"{found.st_size:,} bytes", limit)


def _too_large(path: Path | str, size: str, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"{size}, at most {limit:,} are read", str(path))
