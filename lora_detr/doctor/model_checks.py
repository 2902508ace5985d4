"""Whether a model can be used: files and hashes of every checkpoint, weights, config, and a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from lora_detr.checkpoints.checkpoint import best_step, load_checkpoint, resolve_checkpoint, step_name
from lora_detr.checkpoints.opened import OpenedRun, kind_of, open_model, open_run
from lora_detr.config.load import load_config
from lora_detr.data.loader import collate
from lora_detr.data.quality.detector_limits import DetectorLimits
from lora_detr.doctor.checks import Check, CheckFailedError, attempt
from lora_detr.errors import CheckpointError
from lora_detr.models.huggingface.pretrained import read_config
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.recipe.branch_counts import DEFAULT_BASELINE
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.loaders import limits_of
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Images, Prediction, Target

# Sides of the noise image; odd on purpose, since level shapes and padding go wrong there first.
NOISE_SIDES = (127, 159)


def model_checks(model: Path, device: torch.device) -> Iterator[Check]:
    """Check what a user names as a model; the model can be used if no check has ``FAILED``.

    Of a run it is the newest checkpoint that decides; damage to others is a warning.

    Args:
        model: run, checkpoint, stripped file or official ``.pth``.
        device: of the forward pass.

    Raises:
        CheckpointError: there is no model.
        ConfigError: it is of ``transformers``, which is missing, or of no family that is known.
    """
    opened: list[OpenedRun] = []
    kind = kind_of(model)
    if kind == "transformers":
        read_config(str(model).removeprefix(PREFIX))  # where there is none, there is no model
    if kind in ("stripped", "transformers"):
        yield attempt("file", lambda: _stripped(model, device))
        return
    if kind == "official":
        yield attempt("weights", lambda: _load(opened, model))
    else:
        path = resolve_checkpoint(model, "last")
        # A checkpoint that is named alone is not judged by others that lie beside it.
        paths = [path] if kind == "checkpoint" else _checkpoints(path.parent)
        checks = {path: attempt(path.name, partial(_verified, path)) for path in paths}
        yield from _of_run(checks)
        if checks[paths[-1]].state == "ok":
            yield attempt("weights", lambda: _load(opened, paths[-1]))
        if len(paths) > 1:
            best = attempt("best", lambda: _best(checks))
            yield best if best.state == "ok" else Check(best.name, "warning", best.found, best.remedy)
    if opened:
        yield attempt("forward", lambda: _forward(opened[0], device))


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run by step, complete or not, but for those that others replace."""
    paths = sorted((path for path in folder.glob("step-*") if path.is_dir()), key=lambda path: (path.stem, path.suffix))
    return [path for path in paths if not (path.suffix and path.with_suffix("") in paths)]


def _of_run(checks: Mapping[Path, Check]) -> Iterator[Check]:
    """Give the checks of a run's checkpoints; damage to any but the newest is a warning."""
    *older, newest = checks.values()
    for check in older:
        remedy = "remove it; later ones do not need it"
        yield check if check.state == "ok" else Check(check.name, "warning", check.found, remedy)
    whole = [check.name for check in older if check.state == "ok"]
    if newest.state == "ok" or not whole:
        yield newest
    else:
        yield Check(newest.name, newest.state, newest.found, f"train --resume continues from {whole[-1]}")


def _verified(path: Path) -> str:
    """Read all of a checkpoint, which compares hashes and looks for values that are not finite."""
    checkpoint = load_checkpoint(path, with_optimizer=True)
    size = sum(size for size, _ in checkpoint.manifest.files.values())
    return f"{len(checkpoint.manifest.files)} files, {size / 1e6:.1f} MB, hashes fit, all values finite"


def _best(checks: Mapping[Path, Check]) -> str:
    step = best_step(next(iter(checks)).parent)
    if step is None:
        return "none yet: nothing was evaluated"
    name = step_name(step)
    states = {path.name: check.state for path, check in checks.items()}
    if states.get(name) != "ok":
        why = "is damaged" if name in states else "is missing"
        raise CheckpointError(f"points to {name}, which {why}", "give eval, strip and predict --checkpoint last")
    return f"is {name}"


def _load(opened: list[OpenedRun], path: Path) -> str:
    run = open_run(path, "last")
    opened.append(run)
    count = sum(parameter.numel() for parameter in run.model.parameters())
    branches = len(run.model.branches.members)
    return (
        f"config can be read ({run.config.model.kind}, {branches} branches, {run.categories.num_classes} classes), "
        f"all {len(run.checkpoint.model)} tensors fit, {count / 1e6:.2f} M parameters"
    )


def _stripped(path: Path, device: torch.device) -> str:
    stripped = open_model(path)
    tensors = stripped.detector.state_dict()
    detector = stripped.detector.to(device)
    with torch.no_grad():
        _check_finite("the prediction", detector(_noise(stripped.deployment).to(device)).prediction)
    sizes, hashed = stripped.deployment.model.describe(), "hash fits, " if kind_of(path) == "stripped" else ""
    return f"{hashed}all {len(tensors)} tensors fit ({sizes}), predictions on noise are finite"


def _forward(run: OpenedRun, device: torch.device) -> str:
    model = run.model.to(device)
    with torch.no_grad():
        output, branches = model(_noise(run.deployment).to(device))
    _check_finite("the prediction", output.prediction)
    for layer, prediction in enumerate(branches.layers if branches is not None else ()):
        _check_finite(f"layer {layer} of a branch", prediction)
    return f"predictions on noise are finite ({device})"


def _noise(deployment: DeploymentConfig) -> Images:
    prepared = deployment.transform
    # Where a detector is always given squares, it may take nothing else.
    sides = (prepared.size, prepared.size) if prepared.square else NOISE_SIDES
    pixels = torch.randn(3, *sides, generator=torch.Generator().manual_seed(0))
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0, sides)
    return collate([(pixels, empty)], deployment.size_divisor).images


def _check_finite(name: str, prediction: Prediction) -> None:
    for part, tensor in (("logits", prediction.logits), ("boxes", prediction.boxes)):
        if not bool(tensor.isfinite().all()):
            raise CheckFailedError(f"{name} has {part} that are not finite", "use an earlier checkpoint")


def limits_of_model(model: Path | None, preset: str | None) -> DetectorLimits:
    """Return what a detector is given, and how much it can find.

    Args:
        model: run, checkpoint, stripped file or official ``.pth``; None for that of a preset.
        preset: its name; None for the one that ``train`` takes.

    Raises:
        CheckpointError: the model cannot be used.
        ConfigError: there is no such preset.
    """
    if model is None:
        return limits_of(load_config(RunConfig, preset=preset or DEFAULT_BASELINE).config)
    opened = open_model(model)
    if isinstance(opened, OpenedRun):
        return limits_of(opened.config)
    found = opened.deployment
    return DetectorLimits(found.model.num_queries, found.model.queries_key, found.max_detections, found.transform)
