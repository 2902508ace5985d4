"""Keep a step whose loss is not finite, and run it again in one process to see where it went wrong."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from lora_detr.branches import BranchedDetector
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.source import AUTO
from lora_detr.data.loader import collate
from lora_detr.errors import CheckpointError, ConfigError, DataError, listed
from lora_detr.json_value import JSON, read_json
from lora_detr.losses.criterion import MIDDLE, NonFiniteMatchError
from lora_detr.losses.normaliser import Normaliser
from lora_detr.models import AnyDetector
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits, read_splits, train_loader
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.log_reading import read_object
from lora_detr.regular_files import read_regular
from lora_detr.structures import Batch, PaddedTargets
from lora_detr.tensor_files import build_exact, read_tensors
from lora_detr.training.freezing import freeze, train_unfrozen
from lora_detr.training.nonfinite import REPORT, WEIGHTS
from lora_detr.training.seeding import keeping_rng_state, restore_torch_state
from lora_detr.training.step import forward


@dataclass(frozen=True)
class ReplayedBatch:
    """One batch of one process, then and now.

    Attributes:
        rank: of the process.
        image_ids: of the batch.
        recorded: terms by name; empty where matching failed.
        found: likewise.
        recorded_fault: source and layer whose matching failed.
        found_fault: likewise.
        module: first whose output is not finite, in the order in which they ran; None where all are.
    """

    rank: int
    image_ids: tuple[int, ...]
    recorded: Mapping[str, float]
    found: Mapping[str, float]
    recorded_fault: str | None
    found_fault: str | None
    module: str | None

    @property
    def is_alike(self) -> bool:
        """Whether every term is the same, bit for bit."""
        return self.recorded_fault == self.found_fault and _bits(self.recorded) == _bits(self.found)

    @property
    def shows_fault(self) -> bool:
        """Whether what was found is not finite."""
        return self.found_fault is not None or not all(map(math.isfinite, self.found.values()))

    def lines(self) -> list[str]:
        """Return what was found, a line each."""
        wrong = [name for name, value in self.found.items() if not math.isfinite(value)]
        what = f"{len(wrong)} of {len(self.found)} terms are not finite"
        if self.found_fault is not None:
            what = f"the matching cost of the {self.found_fault} is not finite"
        if not self.shows_fault:
            what = "everything is finite"
        lines = [f"rank {self.rank}, images {list(self.image_ids)}: {what}"]
        lines += [f"  {name}: {self.found[name]}" for name in wrong[:10]]
        if self.module is not None:
            lines.append(f"  first module whose output is not finite: {self.module}")
        if not self.is_alike:
            lines.append("  not what was recorded, bit for bit: another device, machine or version computes otherwise")
        return lines


@dataclass(frozen=True)
class Replay:
    """A step that was run again.

    Attributes:
        step: optimiser steps done before it.
        message: of the report.
        weights: names of tensors that were not finite before the step.
        batches: of all processes.
    """

    step: int
    message: str
    weights: tuple[str, ...]
    batches: tuple[ReplayedBatch, ...]

    @property
    def is_reproduced(self) -> bool:
        """Whether the fault came up again."""
        return any(batch.shows_fault for batch in self.batches)

    def lines(self) -> list[str]:
        """Return what was found, for a reader."""
        wrong = f"{len(self.weights)} tensors are not finite: {listed(self.weights)}"
        weights = wrong if self.weights else "all finite"
        lines = [f"recorded: {self.message}", f"weights before the step: {weights}"]
        lines += [line for batch in self.batches for line in batch.lines()]
        return [*lines, "the fault came up again" if self.is_reproduced else "the fault did not come up again"]

    def to_json(self) -> dict[str, JSON]:
        """Return all of it as plain values; numbers that are not finite as text."""
        batches: list[JSON] = [
            {
                "rank": batch.rank,
                "image_ids": list[JSON](batch.image_ids),
                "terms": {name: value if math.isfinite(value) else str(value) for name, value in batch.found.items()},
                "match": batch.found_fault,
                "module": batch.module,
                "alike": batch.is_alike,
            }
            for batch in self.batches
        ]
        return {
            "step": self.step,
            "message": self.message,
            "weights": list[JSON](self.weights),
            "reproduced": self.is_reproduced,
            "batches": batches,
        }


@keeping_rng_state()
def replay(path: Path, *, data: Path | None, device: str) -> Replay:
    """Run the step of a report again: same weights, images and random draws, all processes one after another.

    On the machine and with the version that wrote the report every term is the same, bit for bit.

    Args:
        path: run directory, or its ``nan_report.json``.
        data: COCO folder or YAML file; None for that of the run.
        device: as for ``train``.

    Raises:
        CheckpointError: there is no report, or it or its weights are damaged.
        ConfigError: the report names no data.
        DataError: the data cannot be used, or lacks an image of the step.
    """
    file = path / REPORT if path.is_dir() else path
    remedy = f"give a run that ended with {REPORT}, or that file"
    try:
        report = read_json(file, lambda message: CheckpointError(message, remedy))
    except CheckpointError:
        # What follows a whole report, such as zeros of a power failure, is no reason to refuse it.
        report = read_object(file) if file.is_file() else {}
        if not report:
            raise
    try:
        config = RunConfig.model_validate(report["config"])
        categories = CategoryMap.from_json(report["categories"])
        weights = _read_weights(file.with_name(WEIGHTS), report["weights"])
        source = data or (None if config.data.path is None else Path(config.data.path))
        if source is None:
            raise ConfigError(f"{file}: records no data path", "give --data PATH")
        layout = config.data.format if data is None else AUTO
        splits = read_splits(source, config.data.model_copy(update={"format": layout}), report["overfit"])
        world = World(0, 1, World.from_environment(device).device)
        build = partial(config.build_model, categories.num_classes, load_weights=False)
        model = build_exact(build, weights, file.with_name(WEIGHTS))
        progress = float(report.get("progress", MIDDLE))  # absent in reports of older versions
        step = _Step(config, splits, model.to(world.device), world, int(report["epoch"]), progress)
        ranks = report["ranks"]
        normaliser = config.loss.normalise(float(report["targets"]), len(ranks))
        batches = [found for rank in ranks for found in step.run(rank, normaliser)]
        wrong = tuple(name for name, tensor in weights.items() if not bool(tensor.isfinite().all()))
        return Replay(int(report["step"]), str(report["message"]), wrong, tuple(batches))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{file}: damaged or of another version: {error}", "use the version that wrote it"
        ) from error


class _Step:
    """Computes the losses of one step again."""

    def __init__(
        self,
        config: RunConfig,
        splits: Splits,
        model: BranchedDetector[AnyDetector],
        world: World,
        epoch: int,
        progress: float,
    ) -> None:
        self.config, self.model, self.world, self.epoch, self.progress = config, model, world, epoch, progress
        self.criterion = config.build_criterion()
        self.dataset = train_loader(splits, config, world).dataset
        self.places = {splits.train.records[i].id: i for i in range(len(splits.train))}
        freeze(model, config.train.freeze)
        train_unfrozen(model, config.train.freeze)

    def run(self, rank: Mapping[str, Any], normaliser: Normaliser) -> Iterator[ReplayedBatch]:
        """Give the batches of a process."""
        restore_torch_state(rank["random"], self.world.device)
        for batch in rank["batches"]:
            ids = tuple(batch["image_ids"])
            fault = None if batch["match"] is None else batch["match"]["where"]
            found, found_fault, module = self._compute(self._read(ids), normaliser)
            yield ReplayedBatch(rank["rank"], ids, batch["terms"], found, fault, found_fault, module)

    def _read(self, ids: tuple[int, ...]) -> Batch:
        absent = [image_id for image_id in ids if image_id not in self.places]
        if absent:
            raise DataError(f"the data has no image {absent[0]}, which the step used", "give --data PATH", code="C08")
        samples = [self.dataset.sample(self.places[image_id], self.epoch) for image_id in ids]
        return collate(samples, self.config.data.size_divisor).to(self.world.device)

    def _compute(self, batch: Batch, normaliser: Normaliser) -> tuple[dict[str, float], str | None, str | None]:
        """Return terms by name, where matching failed, and the first module whose output is not finite."""
        with _first_non_finite(self.model) as wrong:
            output, branches = forward(self.model, batch, self.config.train.precision)
        module = wrong[0] if wrong else None
        try:
            targets = PaddedTargets.from_targets(batch.targets)
            report = self.criterion(output, branches, targets, normaliser, progress=self.progress)
        except NonFiniteMatchError as error:
            return {}, error.where, module
        return {str(term.key): term.value for term in report.terms()}, None, module


@contextmanager
def _first_non_finite(model: nn.Module) -> Iterator[list[str]]:
    """Collect the name of the first module whose output is not finite, in the order in which they end.

    Branches call layers of the decoder; the name then says from where.
    """
    found: list[str] = []
    running: list[str] = []

    def enter(name: str) -> Any:
        return lambda module, inputs: running.append(name)

    def leave(name: str) -> Any:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            running.pop()
            if not found and any(not bool(tensor.isfinite().all()) for tensor in _tensors(output)):
                lent = running and running[-1].split(".")[0] != name.split(".")[0]
                found.append(f"{name}, called from {running[-1]}" if lent else name)

        return look

    modules = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_pre_hook(enter(name)) for name, module in modules]
    handles += [module.register_forward_hook(leave(name)) for name, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    """Give the float tensors in what a module returned."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))


def _read_weights(path: Path, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        content = read_regular(path, facts["bytes"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}", f"keep it beside {REPORT}") from error
    if len(content) != facts["bytes"] or hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise CheckpointError(f"{path}: is not the file that was written with {REPORT}", "use another copy", code="K02")
    return read_tensors(path, finite=False)[0]


def _bits(terms: Mapping[str, float]) -> dict[str, str]:
    return {name: float(value).hex() for name, value in terms.items()}
