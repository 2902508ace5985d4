"""From a configuration to the splits and loaders of a run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lora_detr.data.coco.audit import Policy, examine
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.coco.checks import OnBadData
from lora_detr.data.coco.fingerprint import with_known_files
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.coco.verification import Verify
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.dense import Dense
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.loader import BatchLoader, build_loader
from lora_detr.data.order import repeat_factors
from lora_detr.data.quality.detector_limits import DetectorLimits
from lora_detr.data.quality.finding import warnings_of
from lora_detr.data.reading import EpochDataset
from lora_detr.errors import DataError
from lora_detr.json_value import JSON
from lora_detr.processes.world import World
from lora_detr.recipe.preparation import Preparation
from lora_detr.structures import Target

if TYPE_CHECKING:  # what runs an exported file can build no detector, and imports none
    from lora_detr.recipe.run_config import DataConfig, RunConfig

# Seconds without an image after which a reader process counts as hung, as when shared memory is full.
READER_TIMEOUT = 300.0
# Steps of an epoch when overfitting: a handful of images is repeated until an epoch is worth evaluating.
OVERFIT_STEPS = 50

logger = logging.getLogger(__name__)


class Repeated:
    """A data set whose images come again and again.

    Args:
        dataset: what is repeated.
        count: samples of an epoch; at least as many as the data set has.
    """

    def __init__(self, dataset: CocoDataset, count: int) -> None:
        self.dataset, self.count = dataset, max(count, len(dataset))

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        """Return the sample that ``index`` falls on."""
        return self.dataset.sample(index % len(self.dataset), epoch)

    def image_id(self, index: int) -> int:
        """Return the id of the image that ``index`` falls on."""
        return self.dataset.image_id(index % len(self.dataset))

    def blank(self, index: int) -> tuple[Tensor, Target]:
        """Return what stands for the image that ``index`` falls on if it cannot be read."""
        return self.dataset.blank(index % len(self.dataset))


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Attributes:
        train: images to train on.
        val: images to evaluate on, labelled as ``train``; None when the data set has none.
        categories: labels of the model.
        missing: what was looked for and not found of the validation split.
        augment: whether ``train`` is augmented; false when overfitting.
        warnings: what looks wrong with the splits together.
        recorded: fingerprints that the run has recorded of the same data, if it is resumed.
    """

    train: CocoSplit
    val: CocoSplit | None
    categories: CategoryMap
    missing: str = ""
    augment: bool = True
    warnings: tuple[str, ...] = ()
    recorded: JSON = None

    @property
    def fingerprints(self) -> dict[str, JSON]:
        """Return what tells whether a resumed run sees the same data, by split."""
        known = self.recorded if isinstance(self.recorded, dict) else {}
        own = {"train": self.train.fingerprint, "val": None if self.val is None else self.val.fingerprint}
        return {name: with_known_files(found, known.get(name)) for name, found in own.items()}

    def report(self) -> dict[str, object]:
        """Return the counts of the annotation files for ``data_report.json``, and how many images overfitting takes."""
        report: dict[str, object] = {"train": self.train.report.to_json()}
        if not self.augment:
            return {**report, "overfit": len(self.train)}
        if self.val is not None:
            report["val"] = self.val.report.to_json()
        return {**report, "warnings": list(self.warnings)} if self.warnings else report


def read_splits(path: Path, config: DataConfig, overfit: int | None = None, *, verify: Verify = "none") -> Splits:
    """Read and check both splits of a data set.

    Args:
        path: COCO folder or YAML file.
        config: how to treat bad data, and how to number classes.
        overfit: train and evaluate on the first so many training images that have objects, without augmentation.
        verify: what is done with every image file; see ``verify_images``.

    Raises:
        ConfigError: the path does not exist, or ``coco91`` was asked for data that is not COCO.
        DataError: the data cannot be used; all faults of both splits at once.
        WorkerError: a process that verifies images died.
    """
    paths = find_splits(path, config.read_as)
    found = examine(paths, policy_of(config, verify), validation=overfit is None)
    found.raise_faults()
    train, val = found.train, found.val
    assert train is not None
    names = train.categories.names_by_id
    categories = CategoryMap.coco91(names) if config.num_classes == "coco91" else CategoryMap.from_categories(names)
    train = train.with_categories(categories)
    if overfit is not None:
        chosen = train.records.ids[train.records.object_counts > 0][:overfit].tolist()
        if not chosen:
            raise DataError(f"{train.report.file}: no image has an object to overfit")
        train = train.subset(chosen)
        return Splits(train, train, categories, augment=False)
    warnings = warnings_of(found.findings)
    for warning in warnings:
        logger.warning(warning)
    val = None if val is None else val.with_categories(categories)
    return Splits(train, val, categories, paths.missing, warnings=warnings)


def policy_of(config: DataConfig, verify: Verify = "none") -> Policy:
    """Return how strictly the settings of a run look at data."""
    return Policy(verify, config.strict, config.on_bad_data, config.allow_outside, config.max_pixels)


def limits_of(config: RunConfig) -> DetectorLimits:
    """Return what the detector of a run is given, and how much it can find."""
    model, data = config.model, config.data
    detections = config.evaluation.max_detections
    return DetectorLimits(model.num_queries, model.queries_key, detections, data.evaluation, data.train.tiles)


def train_loader(splits: Splits, config: RunConfig, world: World) -> BatchLoader:
    """Return the shuffled loader of this rank."""
    prepared = config.data.train if splits.augment else config.data.evaluation
    transform, limit = prepared.build(), config.data.max_pixels
    dense = None
    if splits.augment and config.data.train.augment == "dense":
        how = config.data.train
        dense = Dense(max(*how.scales, 0 if how.square else how.max_size or 0))
    dataset: EpochDataset = CocoDataset(
        splits.train, transform, config.train.seed, max_pixels=limit, dense=dense, epochs=_epochs(splits, config, world)
    )
    if not splits.augment:
        assert isinstance(dataset, CocoDataset)
        dataset = Repeated(dataset, OVERFIT_STEPS * config.train.batch_size * config.train.accumulate * world.size)
    return build_loader(
        dataset,
        batch_size=config.train.batch_size,
        shuffle=True,
        rank=world.rank,
        world_size=world.size,
        seed=config.train.seed,
        workers=config.data.workers,
        drop_last=True,
        size_divisor=config.data.size_divisor,
        pin_memory=world.device.type == "cuda",
        timeout=READER_TIMEOUT,
        unreadable="next" if config.data.on_bad_data == "skip" else "error",
        groups=_shapes(splits.train, len(dataset)) if config.data.group_by_shape else None,
        repeats=_repeats(splits.train) if splits.augment and config.data.train.sampling == "repeat-factor" else None,
    )


def eval_loader(
    split: CocoSplit,
    config: Preparation,
    world: World,
    *,
    batch_size: int,
    workers: int,
    on_bad_data: OnBadData = "error",
) -> BatchLoader:
    """Return the loader of this rank's share of a split, in order, prepared as the deployed detector expects.

    With ``skip`` a black image stands for one that cannot be read, so that batches stay as they are; what is found on
    it must not count.
    """
    # The transform of an evaluation draws nothing, so the seed is without effect.
    dataset = CocoDataset(split, config.build_transform(), seed=0, max_pixels=config.max_pixels)
    return build_loader(
        dataset,
        batch_size=batch_size,
        shuffle=False,
        rank=world.rank,
        world_size=world.size,
        seed=0,
        workers=workers,
        drop_last=False,
        size_divisor=config.size_divisor,
        pin_memory=world.device.type == "cuda",
        timeout=READER_TIMEOUT,
        unreadable="blank" if on_bad_data == "skip" else "error",
    )


def _epochs(splits: Splits, config: RunConfig, world: World) -> float:
    """Return the length of a run in epochs."""
    train = config.train
    steps = max(1, len(splits.train) // (train.batch_size * train.accumulate * world.size))
    return train.epochs if train.max_steps is None else min(train.epochs, train.max_steps / steps)


def _repeats(split: CocoSplit) -> list[float]:
    """Return how often each image comes in an epoch where rare classes are sampled more often."""
    table = split.records
    images = np.repeat(np.arange(len(table)), table.object_counts)
    factors: list[float] = repeat_factors(images, table.category_ids, len(table)).tolist()
    return factors


def _shapes(split: CocoSplit, count: int) -> list[int]:
    """Return for each of ``count`` samples, the images of a split in turn, whether it is taller than wide."""
    shapes: list[int] = np.resize(split.records.heights > split.records.widths, count).astype(int).tolist()
    return shapes
