"""Write files so that a reader sees the old content or the new, never a part, whenever the process is killed.

Everything is written under a temporary name in the same folder, flushed to the disk, and renamed. A name that begins
with ``TEMPORARY`` is therefore rubbish of a killed process and may be removed at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_detr.errors import OutputError

TEMPORARY = ".tmp-"


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file that holds ``data``; a symbolic link there is replaced and its target left alone.

    Raises:
        OutputError: the system refused (disk full, read-only, missing folder); the old file is unchanged.
    """
    with reporting(path):
        descriptor, temporary = _open_temporary(path.parent)
        try:
            _write(descriptor, data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet and flush it; for folders that are renamed as a whole (raises OSError)."""
    _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), data)


def flush_directory(path: Path) -> None:
    """Flush the entries of a folder, so that a rename in it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and say so
            raise
    finally:
        os.close(descriptor)


def make_temporary_directory(parent: Path) -> Path:
    """Return a new, empty folder in ``parent`` whose name marks it as temporary (raises OSError)."""
    for number in itertools.count():
        path = parent / f"{TEMPORARY}{os.getpid()}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


@contextlib.contextmanager
def private_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Give a new, empty folder in ``parent`` that is removed at the end.

    Folders of the same prefix are removed first, if the processes that made them are gone: each is locked for as long
    as its process lives, and the system gives up the lock of one that was killed. Where a file system has no locks,
    nothing is removed.

    Args:
        parent: exists.
        prefix: of its name, without characters that a pattern has.

    Raises:
        OSError: the system refused.
    """
    for stale in sorted(parent.glob(f"{prefix}*")):
        with contextlib.suppress(OSError):
            lock = _lock(stale)
            try:
                remove(stale)
            finally:
                os.close(lock)
    path, own = _make_locked(parent, prefix)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            remove(path)
        if own is not None:
            os.close(own)


def _make_locked(parent: Path, prefix: str) -> tuple[Path, int | None]:
    for number in itertools.count():
        path = parent / f"{prefix}{os.getpid()}-{number}"
        try:
            path.mkdir()
            lock = _lock(path)
        except (FileExistsError, FileNotFoundError, BlockingIOError):  # of another, or taken for one of the dead
            if not parent.is_dir():
                raise
            continue
        except OSError:
            if path.is_dir():
                return path, None
            raise
        if path.is_dir() and os.path.samestat(os.fstat(lock), path.stat()):
            return path, lock
        os.close(lock)
    raise AssertionError("unreachable")


def _lock(directory: Path) -> int:
    """Lock a folder and return the descriptor that holds the lock (raises OSError, also where another holds it)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_stale(directory: Path) -> list[Path]:
    """Remove what killed processes left under temporary names, and return it; no other process may be writing there."""
    stale = sorted(directory.glob(f"{TEMPORARY}*")) if directory.is_dir() else []
    with reporting(directory):
        for path in stale:
            remove(path)
    return stale


def remove(path: Path) -> None:
    """Remove a file, a link (never its target) or a folder with its content (raises OSError)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename what is in the way to the next free ``NAME.damaged`` and return that; of a link, the link itself.

    Raises:
        OutputError: the system refused.
    """
    names = itertools.chain((".damaged",), (f".damaged-{number}" for number in itertools.count(2)))
    aside = next(place for name in names if not os.path.lexists(place := path.with_name(path.name + name)))
    with reporting(path):
        os.rename(path, aside)
    return aside


def prepare_directory(path: Path, room: int = 0) -> None:
    """Make a folder if it is absent and prove that it can be written, before hours of work depend on it.

    Args:
        path: the folder.
        room: bytes that must be free.

    Raises:
        OutputError: not a folder, not writable, or not enough room.
    """
    with reporting(path):
        path.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = _open_temporary(path)
        try:
            _write(descriptor, b"x")
        finally:
            temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path).free
    if free < room:
        message = f"{path}: {free / 1e6:.0f} MB are free, {room / 1e6:.0f} MB are needed"
        raise OutputError(message, "free some space, or use another disk", code="P13")


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into an ``OutputError`` that names ``path`` and what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "check that the folder exists and may be written"
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{path}: cannot be written: {reason}", f"{remedy}, or choose another place") from error


def _open_temporary(directory: Path) -> tuple[int, Path]:
    for number in itertools.count():
        path = directory / f"{TEMPORARY}{os.getpid()}-{number}"
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), path
    raise AssertionError("unreachable")


def _write(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
