"""Save, find, verify and load checkpoints, so that no fault loses the last good one.

A checkpoint is a folder ``step-00000042`` with ``model.safetensors``, ``optim.safetensors``, ``state.json``, optionally
``ema.safetensors``, and ``MANIFEST.json``. It is written under a temporary name, flushed, verified and renamed; only
then may an older one be removed. Order is by step, never by the time of a file. No pickle is involved.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from lora_detr.atomic_files import (
    flush_directory,
    make_temporary_directory,
    remove,
    remove_stale,
    reporting,
    write_file,
    write_new,
)
from lora_detr.checkpoints import manifest as manifests
from lora_detr.checkpoints.manifest import Manifest
from lora_detr.checkpoints.training_state import TrainingState
from lora_detr.errors import CheckpointError, OutputError
from lora_detr.json_value import JSON, read_json
from lora_detr.regular_files import read_regular
from lora_detr.tensor_files import encode_tensors, read_tensors

MODEL, OPTIMIZER, EMA, STATE, BEST = "model.safetensors", "optim.safetensors", "ema.safetensors", "state.json", "best"
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds all of its checkpoints."""

_STEP = re.compile(r"step-(\d{8,})")
_REPLACED = ".replaced"
_MAX_POINTER = 10_000


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A verified checkpoint, on the CPU.

    Attributes:
        step: optimiser steps done.
        model: weights.
        optimizer: tensors of the optimiser; empty when they were not asked for.
        ema: averaged weights, or None when none were kept.
        state: where the run stood.
        manifest: its facts: world size, configuration hash, versions.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: TrainingState
    manifest: Manifest


def step_name(step: int) -> str:
    """Return the name of the checkpoint of a step, such as ``step-00000042``."""
    return f"step-{step:08d}"


def run_of(checkpoint: Path) -> Path | None:
    """Return the run directory that a checkpoint lies in, or None where it stands alone."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: TrainingState,
    ema: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, JSON],
) -> Path:
    """Write a checkpoint and return its folder; one of the same step is replaced.

    Args:
        directory: the run's ``checkpoints`` folder, which exists.
        step: optimiser steps done.
        model: weights.
        optimizer: tensors of ``flatten_optimizer``.
        state: what resuming needs besides tensors.
        ema: averaged weights.
        facts: world size, configuration hash; those of the machine are added.

    Raises:
        NumericalError: a weight is not finite; nothing is written.
        OutputError: the system refused; the temporary folder is gone and older checkpoints are untouched.
    """
    parts: dict[str, Callable[[], bytes]] = {
        MODEL: lambda: encode_tensors(model),
        OPTIMIZER: lambda: encode_tensors(optimizer),
        STATE: lambda: json.dumps(state.to_json(), indent=1).encode() + b"\n",
    }
    if ema is not None:
        parts[EMA] = lambda: encode_tensors(ema)
    final = directory / step_name(step)
    with reporting(directory):
        temporary = make_temporary_directory(directory)
        try:
            files: dict[str, tuple[int, str]] = {}
            for name, encode in parts.items():
                data = encode()
                write_new(temporary / name, data)
                files[name] = len(data), hashlib.sha256(data).hexdigest()
                del data  # the next part is as large
            manifest = Manifest(step, files, {**manifests.machine_facts(), **facts})
            write_new(temporary / manifests.NAME, manifests.encode(manifest))
            flush_directory(temporary)
            _verify_written(temporary)
            _publish(temporary, final)
        except BaseException:
            with contextlib.suppress(OSError):  # what cannot be removed now is stale at the next start
                remove(temporary)
            raise
    return final


def load_checkpoint(path: Path, *, with_optimizer: bool) -> LoadedCheckpoint:
    """Return a checkpoint after verifying every file of it.

    Args:
        path: the checkpoint's folder.
        with_optimizer: whether to read the tensors of the optimiser.

    Raises:
        CheckpointError: incomplete, damaged, of a newer format, with values that are not finite, or in a folder that
            bears the name of another step.
    """
    manifest = _verify(path)
    absent = [name for name in (MODEL, OPTIMIZER, STATE) if name not in manifest.files]
    if absent:
        raise CheckpointError(
            f"{path}: incomplete: the manifest lacks {', '.join(absent)}", manifests.RECOVER, code="K03"
        )
    model, _ = read_tensors(path / MODEL)
    optimizer = read_tensors(path / OPTIMIZER)[0] if with_optimizer else {}
    ema = read_tensors(path / EMA)[0] if EMA in manifest.files else None
    return LoadedCheckpoint(manifest.step, model, optimizer, ema, _read_state(path / STATE), manifest)


def load_latest(
    directory: Path, *, with_optimizer: bool = True
) -> tuple[LoadedCheckpoint | None, tuple[CheckpointError, ...]]:
    """Return the newest checkpoint that verifies, and the errors of newer ones that do not.

    The checkpoint is None only where the folder holds none at all, damaged ones included: a run must not start again
    beside work that cannot be read.

    Raises:
        CheckpointError: there are checkpoints, and none of them can be used.
    """
    skipped: list[CheckpointError] = []
    for _, path in sorted(_steps(directory).items(), reverse=True):
        try:
            return load_checkpoint(path, with_optimizer=with_optimizer), tuple(skipped)
        except CheckpointError as error:
            skipped.append(error)
    if skipped:
        message = f"{directory}: none of {len(skipped)} checkpoints can be used; the newest: {skipped[0].message}"
        remedy = "restore one from a copy, or train into another directory"
        raise CheckpointError(message, skipped[0].remedy if skipped[0].code == "K14" else remedy, code="C10")
    return None, ()


def latest(directory: Path) -> Path | None:
    """Return the newest complete checkpoint by step, not yet verified, or None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and none of them is complete.
    """
    steps = _steps(directory)
    for _, path in sorted(steps.items(), reverse=True):
        if (path / manifests.NAME).is_file():
            return path
    if steps:
        message = f"{directory}: none of {len(steps)} checkpoints is complete"
        raise CheckpointError(message, "restore one from a copy, or train into another directory", code="C10")
    return None


def has_checkpoints(directory: Path) -> bool:
    """Return whether a folder holds any checkpoint, complete or not; a folder that is not there holds none."""
    return bool(_steps(directory))


def has_step(directory: Path, step: int) -> bool:
    """Return whether a folder holds a checkpoint of a step, complete or not."""
    return step in _steps(directory)


def set_best(directory: Path, step: int) -> None:
    """Point ``best`` at the checkpoint of a step, atomically.

    Raises:
        CheckpointError: there is no such checkpoint.
        OutputError: the pointer cannot be written; the old one stands.
    """
    if step not in _steps(directory):
        raise CheckpointError(f"{directory}: no checkpoint of step {step}", "save it before marking it as the best")
    write_file(directory / BEST, _pointer(step_name(step)).encode())


def best_step(directory: Path) -> int | None:
    """Return the step that ``best`` points at, or None where nothing has been evaluated.

    The pointer carries a hash of the name, so that a changed digit does not lead to another checkpoint. A name alone,
    as a user may write it, is taken too.

    Raises:
        CheckpointError: the pointer is malformed, or was changed.
    """
    try:
        text = read_regular(directory / BEST, _MAX_POINTER)[:64].decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{directory / BEST}: cannot be read: {error.strerror}", "remove it") from error
    name = text.split(maxsplit=1)[0] if text.strip() else ""
    match = _STEP.fullmatch(name)
    if match is None or text not in (_pointer(name), f"{name}\n", name):
        message = f"{directory / BEST}: expected the name of a checkpoint, found {text.strip()!r}"
        remedy = "write the name of one of the checkpoints into it, or remove it to take the newest for the best"
        raise CheckpointError(message, remedy, code="K02")
    return int(match[1])


def prune(directory: Path, keep_last: int, keep: Collection[int] = (), *, newest: int | None = None) -> list[Path]:
    """Remove old checkpoints and return them, once the newest verifies; the best one always stays.

    Args:
        directory: the run's ``checkpoints`` folder.
        keep_last: how many of the newest stay, at least 1.
        keep: steps that stay too.
        newest: the step just saved; later ones, which a resumed run skipped as damaged, are left alone.

    Raises:
        CheckpointError: the newest checkpoint does not verify; nothing is removed.
        OutputError: the system refused.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; must be at least 1")
    steps = sorted(((s, path) for s, path in _steps(directory).items() if newest is None or s <= newest), reverse=True)
    if len(steps) <= keep_last:
        return []
    _verify(steps[0][1])
    kept = {*keep, best_step(directory)}
    old = [path for step, path in steps[keep_last:] if step not in kept]
    with reporting(directory):
        for path in old:
            # Renamed first: a folder half removed must not look like a checkpoint.
            doomed = make_temporary_directory(directory)
            os.rename(path, doomed / path.name)
            remove(doomed)
    return old


def clean_stale(directory: Path) -> list[Path]:
    """Remove what a killed process left behind and return it; call at the start, holding the run's lock.

    A checkpoint that was being replaced when the process died is put back.
    """
    stale = remove_stale(directory)
    with reporting(directory):
        for path in sorted(directory.glob(f"step-*{_REPLACED}")) if directory.is_dir() else []:
            final = path.with_name(path.name.removesuffix(_REPLACED))
            if final.exists():
                remove(path)
                stale.append(path)
            else:
                os.rename(path, final)
    return stale


def resolve_checkpoint(model: Path, which: Literal["best", "last"] = "best") -> Path:
    """Return the checkpoint folder that ``model`` names.

    Args:
        model: a run directory, its ``checkpoints`` folder, or a checkpoint's folder.
        which: for a run; ``best`` is the newest where nothing was evaluated.

    Raises:
        CheckpointError: there is none.
    """
    if not model.is_dir():
        found = "is a file" if model.is_file() else "is a pipe or a device" if model.exists() else "does not exist"
        raise CheckpointError(f"{model}: {found}", "give a run directory or a checkpoint directory")
    if is_checkpoint(model):
        return model
    directory = checkpoints_of(model)
    steps = _steps(directory)
    if not steps:
        remedy = "give a run directory (it has a `checkpoints` folder) or a checkpoint directory"
        raise CheckpointError(f"{model}: holds no checkpoint", remedy, code="C10")
    best = best_step(directory) if which == "best" else None
    if best is not None and best not in steps:
        message = f"{directory}: the best checkpoint, of step {best}, is missing"
        raise CheckpointError(message, "use --checkpoint last")
    path = steps[best] if best is not None else latest(directory)
    assert path is not None
    return path


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is one checkpoint, complete or not: its name says so, or it has a manifest."""
    return _STEP.fullmatch(folder.name.removesuffix(_REPLACED)) is not None or (folder / manifests.NAME).is_file()


def checkpoints_of(folder: Path) -> Path:
    """Return where the checkpoints of a run lie: below it, or in ``folder`` where that is the place itself."""
    return folder / CHECKPOINTS if (folder / CHECKPOINTS).is_dir() else folder


def _steps(directory: Path) -> dict[int, Path]:
    """Return step -> folder of all checkpoints; one that is being replaced counts while the new one is not there."""
    found: dict[int, Path] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _STEP.fullmatch(path.name.removesuffix(_REPLACED))
        if match is not None and path.is_dir() and (int(match[1]) not in found or path.suffix != _REPLACED):
            found[int(match[1])] = path
    return found


def _pointer(name: str) -> str:
    return f"{name} {hashlib.sha256(name.encode()).hexdigest()[:16]}\n"


def _verify(path: Path) -> Manifest:
    """Return the manifest of a checkpoint that is whole, and of the step that the name of its folder states.

    What is newest, best or too old is decided by names, which a user can exchange.

    Raises:
        CheckpointError: as of ``manifests.verify``; K14, it is of another step.
    """
    manifest = manifests.verify(path)
    match = _STEP.fullmatch(path.name.removesuffix(_REPLACED))
    if match is not None and int(match[1]) != manifest.step:
        message = f"{path}: its name states step {int(match[1])}, its manifest step {manifest.step}: it was renamed"
        raise CheckpointError(message, f"name it {step_name(manifest.step)} again, or remove it", code="K14")
    return manifest


def _verify_written(temporary: Path) -> None:
    try:
        manifests.verify(temporary)
    except CheckpointError as error:
        message = f"{temporary.parent}: what was written does not read back: {error.message}"
        raise OutputError(message, "check the disk; older checkpoints are untouched") from error


def _publish(temporary: Path, final: Path) -> None:
    """Rename a finished folder into place, so that at every instant the old one or the new one can be found."""
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():
        remove(replaced)
        os.rename(final, replaced)
    try:
        os.rename(temporary, final)
    except OSError:
        if replaced.exists():
            os.rename(replaced, final)
        raise
    flush_directory(final.parent)
    remove(replaced)


def _read_state(path: Path) -> TrainingState:
    return TrainingState.from_json(read_json(path, lambda message: CheckpointError(message, manifests.RECOVER)))
