"""What every process saw of a step whose loss is not finite: the message, and the report that can be replayed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lora_detr.atomic_files import write_file
from lora_detr.errors import NumericalError
from lora_detr.json_value import JSON
from lora_detr.losses.report import LossTerm
from lora_detr.recipe.loaders import Splits
from lora_detr.recipe.run_config import RunConfig
from lora_detr.tensor_files import encode_tensors

REPORT, WEIGHTS = "nan_report.json", "nan_report.safetensors"


@dataclass(frozen=True)
class MatchFault:
    """A matching cost that is not finite, so that no loss could be computed.

    Attributes:
        where: source and layer.
        image_id: of the first image concerned.
    """

    where: str
    image_id: int


@dataclass(frozen=True)
class BatchRecord:
    """What one process saw of one of its batches of the step.

    Attributes:
        image_ids: of the batch.
        terms: all of them, before weighting; empty where matching failed.
        fault: of matching; None where there was none.
    """

    image_ids: tuple[int, ...]
    terms: tuple[LossTerm, ...]
    fault: MatchFault | None = None

    @property
    def wrong(self) -> tuple[LossTerm, ...]:
        """The terms that are not finite."""
        return tuple(term for term in self.terms if not math.isfinite(term.value))

    @property
    def is_wrong(self) -> bool:
        """Whether this batch made the loss what it is."""
        return self.fault is not None or not math.isfinite(sum(term.value * term.weight for term in self.terms))

    def describe(self) -> str:
        """Return what is wrong, with the images concerned."""
        if self.fault is not None:
            return f"matching cost of the {self.fault.where} is not finite; image {self.fault.image_id}"
        images = f"images {list(self.image_ids)}"
        if not self.wrong:
            return f"loss is not finite, though its terms are: their sum is too large; {images}"
        first = self.wrong[0]
        return (
            f"loss is not finite: {first.key} is {first.value} ({len(self.wrong)} of {len(self.terms)} terms); {images}"
        )

    def to_json(self) -> dict[str, JSON]:
        """Return it as plain values."""
        fault: dict[str, JSON] | None = None
        if self.fault is not None:
            fault = {"where": self.fault.where, "image_id": self.fault.image_id}
        return {
            "image_ids": list[JSON](self.image_ids),
            "match": fault,
            "terms": {str(term.key): term.value for term in self.terms},
        }


@dataclass(frozen=True)
class RankRecord:
    """What one process saw of the step.

    Attributes:
        batches: in the order in which they were added up.
        random: state of torch's generators at the start of the step, as ``seeding.torch_state`` gives it.
    """

    batches: tuple[BatchRecord, ...]
    random: Mapping[str, JSON]


@dataclass(frozen=True)
class NonFiniteStep:
    """What all processes saw.

    Attributes:
        step: optimiser steps done before it.
        progress: share of the run that was behind, in [0, 1].
        targets: objects of the whole step, which losses are divided by.
        ranks: every process, by rank.
    """

    step: int
    progress: float
    targets: float
    ranks: tuple[RankRecord, ...]

    @property
    def first(self) -> BatchRecord:
        """The first batch with a fault; where none has one of its own, the first of all."""
        seen = [batch for rank in self.ranks for batch in rank.batches]
        return next((batch for batch in seen if batch.is_wrong), seen[0])

    @property
    def code(self) -> str:
        """N06 where matching failed first, N01 otherwise."""
        return "N01" if self.first.fault is None else "N06"

    def message(self) -> str:
        """Return one line: the first fault, in which micro-batch it is, and which processes have one."""
        text = f"step {self.step}: {self.first.describe()}"
        wrong = [i for i, rank in enumerate(self.ranks) if any(batch.is_wrong for batch in rank.batches)]
        if not wrong:
            return text
        flags = [batch.is_wrong for batch in self.ranks[wrong[0]].batches]
        if len(flags) > 1:
            text += f"; micro-batch {flags.index(True) + 1} of {len(flags)}"
        if len(self.ranks) > 1:
            text += f"; on rank {', '.join(map(str, wrong))} of {len(self.ranks)}"
        return text

    def to_json(self) -> dict[str, JSON]:
        """Return all of it for ``nan_report.json``."""
        ranks: list[JSON] = [
            {"rank": i, "batches": [batch.to_json() for batch in rank.batches], "random": dict(rank.random)}
            for i, rank in enumerate(self.ranks)
        ]
        own: dict[str, JSON] = {
            "step": self.step,
            "progress": self.progress,
            "message": self.message(),
            "targets": self.targets,
        }
        return {**own, "ranks": ranks}


class NonFiniteLossError(NumericalError):
    """A loss or a matching cost is NaN or infinite; raised on all processes in the same step.

    Args:
        seen: what all of them saw.
    """

    on_all_ranks = True

    def __init__(self, seen: NonFiniteStep) -> None:
        remedy = "lower --lr; loradetr doctor --replay RUN runs the step again and reports the first module concerned"
        super().__init__(seen.message(), remedy, code=seen.code)
        self.seen = seen


def keep_step(
    directory: Path, seen: NonFiniteStep, model: nn.Module, config: RunConfig, splits: Splits, epoch: int
) -> None:
    """Write ``nan_report.json``, and beside it the weights that the step had.

    The weights may be what is not finite, so they are no checkpoint, and nothing but ``doctor --replay`` reads them.

    Args:
        directory: of the run.
        seen: by all processes.
        model: as it was before the step, which has updated nothing.
        config: of the run.
        splits: its data.
        epoch: of the step.

    Raises:
        OutputError: a file cannot be written.
    """
    weights = encode_tensors(model.state_dict(), finite=False)
    write_file(directory / WEIGHTS, weights)
    report = {
        **seen.to_json(),
        "epoch": epoch,
        "overfit": None if splits.augment else len(splits.train),
        "categories": splits.categories.to_json(),
        "config": config.model_dump(mode="json"),
        "weights": {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    write_file(directory / REPORT, (json.dumps(report, indent=1) + "\n").encode())
