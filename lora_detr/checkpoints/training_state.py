"""``state.json`` of a checkpoint: everything of a run that is no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_detr.json_value import JSON


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands. What is None is unknown, so that checkpoints of other versions can be read.

    Whoever uses a part that is JSON checks it: most readers need settings and labels alone, and no fault elsewhere
    should keep them from a model.

    Attributes:
        config: settings of the run.
        categories: labels of the model.
        data: of ``Splits.fingerprints``; of older versions, a hash of ids and sizes of the images of each split.
        optimizer: what ``flatten_optimizer`` returned besides tensors; None where nothing was trained.
        rng: state of the random generators of each process, by rank.
        plan: of ``Plan.to_json``.
        means: of ``RunningMean.to_json``.
        best: highest AP so far, in [0, 1].
        best_step: its step.
        metrics: of the evaluation at this step.
        augment: whether training images are augmented.
        overfit: on how many images the run overfits; None for a common run.
        kept: steps whose checkpoints are never removed.
        ema_updates: taken in by the average of the weights.
        official: of a converted checkpoint, what the official file had and our model has not.
    """

    config: JSON = None
    categories: JSON = None
    data: JSON = None
    optimizer: JSON = None
    rng: JSON = None
    plan: JSON = None
    means: JSON = None
    best: float | None = None
    best_step: int | None = None
    metrics: JSON = None
    augment: bool = True
    overfit: int | None = None
    kept: tuple[int, ...] = ()
    ema_updates: int | None = None
    official: JSON = None

    def to_json(self) -> dict[str, JSON]:
        """Return what ``state.json`` holds; where nothing was trained, that is settings, labels and origin alone."""
        values: dict[str, JSON] = {**vars(self), "kept": list[JSON](self.kept)}
        if self.optimizer is None:
            return {name: values[name] for name in ("config", "categories", "official")}
        del values["official"]
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, JSON]) -> TrainingState:
        """Read what ``to_json`` returned, of this version or another."""
        best, kept = value.get("best"), value.get("kept")
        return cls(
            **{name: value.get(name) for name in ("config", "categories", "data", "optimizer", "rng", "plan", "means")},
            best=float(best) if isinstance(best, int | float) else None,
            best_step=_whole(value.get("best_step")),
            metrics=value.get("metrics"),
            augment=value.get("augment") is not False,
            overfit=_whole(value.get("overfit")),
            kept=tuple(step for step in kept if isinstance(step, int)) if isinstance(kept, list) else (),
            ema_updates=_whole(value.get("ema_updates")),
            official=value.get("official"),
        )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
