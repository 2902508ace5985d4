"""Train Hugging Face's Deformable DETR on a COCO-format data set for a given time, with our readers and our evaluation.

Backbone with its ImageNet weights, images, augmentation, batch, rates, warm-up and clipping are those of a preset of
ours without branches; matching, losses and detector are theirs. The rate drops to a tenth for the last 15 % of the
time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import torch

from benchmarks.huggingface import build, labels_of, optimizer_of, update
from lora_detr.evaluation.coco_eval import CocoMetrics
from lora_detr.evaluation.detect import detect_all
from lora_detr.models.backbones.weights import NONE
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import Splits, train_loader
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch, Images, Prediction
from lora_detr.training.seeding import seed_everything

LAST_PART, LAST_FACTOR = 0.15, 0.1


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        steps: optimiser steps.
        seconds: that they took, reading included.
        metrics: on the validation images.
    """

    steps: int
    seconds: float
    metrics: CocoMetrics


def train_theirs(config: RunConfig, splits: Splits, seconds: float, world: World) -> Trained:
    """Train until the time is over, and evaluate.

    Args:
        config: our settings, whose part that is not the detector's they are trained by.
        splits: data with a validation split.
        seconds: that training may take; the last step may end after them.
        world: one process.
    """
    assert splits.val is not None
    seed_everything(config.train.seed)
    model = build(config, splits.categories.num_classes)
    network = model.model.backbone.model
    if config.model.backbone.weights != NONE:
        network.load_state_dict(config.model.backbone.build(load_weights=True).body.state_dict())
    model.to(world.device).train()
    normalise = PixelNormalisation(*config.model.backbone.input_statistics).to(world.device)
    settings = config.train.optimizer
    scale = next(rule.scale for rule in settings.lr_rules if "backbone" in rule.pattern)
    optimizer = optimizer_of(model, settings, scale)
    rates = [group["lr"] for group in optimizer.param_groups]
    limit = float("inf") if settings.clip_norm is None else settings.clip_norm
    warm_up = max(config.train.schedule.warmup_steps, 1)
    steps, start = 0, time.perf_counter()
    batches = _endless(splits, config, world)
    for batch in batches:
        passed = time.perf_counter() - start
        if passed >= seconds:
            break
        factor = LAST_FACTOR if passed > (1 - LAST_PART) * seconds else min(1.0, (steps + 1) / warm_up)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = factor * rate
        batch = batch.to(world.device)
        images = batch.images
        update(optimizer, model, normalise(images), (~images.padding).long(), labels_of(batch), limit)
        steps += 1
    taken = time.perf_counter() - start
    batches.close()
    model.eval()

    @torch.no_grad()
    def predict(images: Images) -> Prediction:
        found = model(pixel_values=normalise(images), pixel_mask=(~images.padding).long())
        return Prediction(found.logits, found.pred_boxes)

    evaluators = detect_all(
        predict,
        splits.val,
        config.deployment(splits.categories),
        world,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
        nms_ious=(None,),
    )
    return Trained(steps, taken, evaluators[None].compute())


def _endless(splits: Splits, config: RunConfig, world: World) -> Generator[Batch]:
    """Yield the batches of one epoch after the other."""
    with closing(train_loader(splits, config, world)) as loader:
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader
