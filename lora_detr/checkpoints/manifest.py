"""The manifest of a checkpoint: what files it has, their sizes and hashes, and what they were made with.

It is written last, so a checkpoint without one is incomplete; and it carries a hash of itself, so that a changed step
or a changed hash is as visible as a changed weight.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_detr.errors import CheckpointError
from lora_detr.json_value import JSON
from lora_detr.regular_files import open_regular, read_regular

NAME = "MANIFEST.json"
FORMAT = 1
"""Raised with every change that an older reader would misread."""

_MAX_BYTES = 1_000_000
# Of files that a checkpoint has; a manifest must not lead to another folder, nor to a name that no system has.
_PLAIN_NAME = re.compile(r"\w[\w-]{0,99}(\.\w[\w-]{0,99}){0,3}", re.ASCII)
RECOVER = "use an earlier checkpoint of the run"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
        step: optimiser steps done.
        files: name -> (bytes, SHA-256 in hexadecimal).
        facts: world size, hash of the configuration, torch version, threads, CPU capability, and what the caller adds.
    """

    step: int
    files: Mapping[str, tuple[int, str]]
    facts: Mapping[str, JSON]


def machine_facts() -> dict[str, JSON]:
    """Return what bitwise reproduction depends on besides the seed; no name of user, host or folder."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest file."""
    body: dict[str, JSON] = {
        "format": FORMAT,
        "step": manifest.step,
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in manifest.files.items()},
        "facts": dict(manifest.facts),
    }
    return _text({**body, "sha256": _digest(body)}).encode()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal (raises OSError)."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a checkpoint directory; the files are not looked at.

    Raises:
        CheckpointError: it is missing, damaged, edited, or of a newer format.
    """
    path = directory / NAME
    try:
        data = read_regular(path, _MAX_BYTES)
    except FileNotFoundError:
        message = f"{directory}: incomplete: {NAME} is missing"
        raise CheckpointError(message, RECOVER, code="K03") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", RECOVER, code="K03") from error
    try:
        body = json.loads(data)
        version = body["format"]
        if isinstance(version, int) and version > FORMAT:
            message = f"{directory}: format {version} is newer than {FORMAT}, the newest this version reads"
            raise CheckpointError(message, "upgrade lora-detr", code="K13")
        # The exact text is compared, so a change that parses to the same values is seen too.
        intact = _text(body).encode() == data and body.pop("sha256") == _digest(body)
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in body["files"].items()}
        manifest = Manifest(int(body["step"]), files, dict(body["facts"]))
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path}: damaged or edited: its hash does not fit", RECOVER, code="K03")
    return manifest


def verify(directory: Path) -> Manifest:
    """Return the manifest of a checkpoint after comparing size and hash of every file it names.

    Raises:
        CheckpointError: names the first file that does not fit.
    """
    manifest = read_manifest(directory)
    for name, (size, digest) in manifest.files.items():
        path = directory / name
        if not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(f"{directory}: the manifest lists a file outside: {name!r}", RECOVER, code="K03")
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: is no file", RECOVER, code="K01")
            found = status.st_size
            if found != size:
                message = f"{path}: truncated or extended: {found} bytes, {size} were written"
                raise CheckpointError(message, RECOVER, code="K01")
            if hash_file(path) != digest:
                raise CheckpointError(f"{path}: changed since it was saved: its hash does not fit", RECOVER, code="K02")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}", RECOVER, code="K01") from error
    return manifest


def _digest(body: Mapping[str, JSON]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()


def _text(body: Mapping[str, JSON]) -> str:
    return json.dumps(body, indent=1, sort_keys=True) + "\n"
