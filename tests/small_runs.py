"""Runs that a CPU trains in seconds, for all tests that need a model, a trainer or a run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_detr.config.load import load_config
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import collate
from lora_detr.losses.criterion import Criterion
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits, read_splits
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.display import Silent
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs import run
from lora_detr.runs.request import Request, Resolved, resolve
from lora_detr.structures import Batch
from lora_detr.training.optim import build_optimizer
from lora_detr.training.seeding import seed_everything
from lora_detr.training.step import Stepper
from lora_detr.training.trainer import Trainer

SMALL = Path(__file__).with_name("small.yaml")

ALONE = World(0, 1, torch.device("cpu"))

# Without dropout and without the random cap of candidates, the loss of an image depends on nothing but the weights.
WITHOUT_CHANCE = (
    "model.dropout=0.0",
    *(f"branches.{i}.matcher.positive_fraction=null" for i in range(3)),
)

# Forty steps that teach the small network two images by heart.
LEARNED = (
    "model.dropout=0.0",
    "data.train.flip_probability=0.0",
    "train.optimizer.lr=2e-3",
    "train.optimizer.lr_rules=[]",
    "train.epochs=40",
    "evaluation.every=10",
)


# What a tiny preset is cut down to, so that a step takes a tenth of a second; what it switches on is kept.
REDUCED = (
    "model.backbone={kind: timm, name: test_efficientnet, strides: [16, 32], weights: none, channels_last: true}",
    "model.num_queries=20",
    "model.hidden_dim=32",
    "model.heads=4",
    "model.ffn_dim=64",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.points=2",
    "data.workers=0",
    "data.train.scales=[96]",
    "data.evaluation.size=96",
    "train.device=cpu",
    "train.log_every=1",
    "train.schedule.warmup_steps=0",
    "train.schedule.drop_fractions=[]",
)


class Lines(Silent):
    """A display that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Keep the line."""
        self.lines.append(text)


def config(*overrides: str) -> RunConfig:
    """Return the small configuration with ``key.path=value`` changes."""
    return load_config(RunConfig, preset=SMALL, overrides=overrides).config


def request(data: Path, *overrides: str) -> Resolved:
    """Return what ``loradetr train`` would make of the small preset."""
    return resolve(Request(preset=str(SMALL), data=data, overrides=overrides))


def reduced(preset: str, data: Path, *overrides: str, branches: Sequence[str] = ()) -> Resolved:
    """Return what ``loradetr train`` would make of a tiny preset, at a size that trains in seconds."""
    return resolve(Request(preset=preset, data=data, overrides=(*REDUCED, *overrides), branches=branches))


def train(
    data: Path, output: Path, *overrides: str, overfit: int | None = None, display: Lines | None = None
) -> run.Finished:
    """Train the small run in this process."""
    return run.start(request(data, *overrides), output, overfit, dry_run=False, display=display or Lines())


def stepper(settings: RunConfig, num_classes: int, world: World = ALONE) -> Stepper:
    """Return a stepper over a new model, whose weights follow from the seed alone."""
    seed_everything(settings.train.seed)
    model = settings.build_model(num_classes, load_weights=False).train()
    optimizer = build_optimizer(model, settings.train.optimizer)
    return Stepper(world.wrap(model), settings.build_criterion(), optimizer, settings, world)


def trainer(settings: RunConfig, splits: Splits, folder: Path, criterion: Criterion | None = None) -> Trainer:
    """Return a trainer over a new model that writes into a folder."""
    model = settings.build_model(splits.categories.num_classes, load_weights=False)
    return Trainer(settings, splits, model, RunDirectory(folder), ALONE, Lines(), criterion)


def splits_of(data: Path, settings: RunConfig) -> Splits:
    """Return both splits of a data set."""
    return read_splits(data, settings.data)


def batch_of(splits: Splits, settings: RunConfig, indices: Sequence[int]) -> Batch:
    """Return training images by their place in the file, prepared without augmentation."""
    dataset = CocoDataset(splits.train, settings.data.evaluation.build(), seed=0)
    return collate([dataset[i] for i in indices])


def with_objects(splits: Splits) -> list[int]:
    """Return the places of the training images that have objects."""
    return [i for i, record in enumerate(splits.train.records) if len(record.category_ids)]


def write_two_images(shapes: Path, folder: Path) -> Path:
    """Write a data set whose two splits are the first two images with objects; return its YAML file."""
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    filled = {annotation["image_id"] for annotation in content["annotations"]}
    images = [image for image in content["images"] if image["id"] in filled][:2]
    chosen = {image["id"] for image in images}
    content["images"] = images
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in chosen]
    (folder / "pictures").symlink_to(shapes / "train", target_is_directory=True)
    return write_data(content, folder / "two.json", "pictures")


def write_data(content: Mapping[str, Any], annotations: Path, images: Path | str) -> Path:
    """Write a data set whose two splits are one annotation file with images of some folder; return its YAML file."""
    annotations.write_text(json.dumps(content), encoding="utf-8")
    folder = annotations.parent
    lines = [f"{split}_annotations: {annotations.name}\n{split}_images: {images}\n" for split in ("train", "val")]
    (folder / "data.yaml").write_text("".join(lines), encoding="utf-8")
    return folder / "data.yaml"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def relative_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest difference of two lists of numbers, each relative to the expected one."""
    pairs = zip(found, expected, strict=True)
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
