"""What a run says about itself before it starts."""

from __future__ import annotations

from pathlib import Path

from lora_detr.config.run import RunConfig
from lora_detr.models.backbones.weights import NONE
from lora_detr.training.data import Splits
from lora_detr.training.trainer import Trainer


def summary_lines(trainer: Trainer, preset: str, output: Path) -> list[str]:
    """Return detector, branches, parameters, data, schedule and devices, a line or a few each."""
    config, world = trainer.config, trainer.world
    detector = sum(p.numel() for p in trainer.model.detector.parameters())
    branches = sum(p.numel() for p in trainer.model.branches.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    backbone = config.model.backbone
    rate, batch = config.train.optimizer, config.train.batch_size * config.train.accumulate * world.size
    return [
        f"preset      {preset}",
        f"detector    {config.model.kind}, {backbone.name} ({_weights(backbone.weights)}), "
        f"{config.model.encoder_layers} + {config.model.decoder_layers} layers, {config.model.num_queries} queries",
        *_branch_lines(config),
        f"parameters  {(detector + branches) / 1e6:.2f} M: {detector / 1e6:.2f} M stay after strip, "
        f"{branches / 1e6:.2f} M in branches; {trained / 1e6:.2f} M are trained",
        *_data_lines(trainer.splits),
        f"schedule    {trainer.total_steps} steps ({trainer.steps_per_epoch} an epoch), global batch {batch} "
        f"(lr {rate.lr:g} is meant for {rate.reference_batch}), {config.train.precision}",
        f"device      {world.device}, {world.size} process{'es' if world.size > 1 else ''}",
        f"output      {output}",
    ]


def _weights(name: str) -> str:
    return "from scratch" if name == NONE else f"{name} weights"


def _branch_lines(config: RunConfig) -> list[str]:
    if not config.branches:
        return ["branches    none"]
    lines = []
    for name, branch in zip(config.branch_names, config.branches, strict=True):
        matcher = branch.matcher
        lines.append(
            f"{name:<12}{branch.kind} rank {branch.rank}, {matcher.kind} k={matcher.k} tau={matcher.threshold:g} "
            f"alpha={matcher.class_weight:g}"
        )
    return lines


def _data_lines(splits: Splits) -> list[str]:
    lines = [f"train       {splits.train.report.lines()[0]}", *splits.train.report.lines()[1:]]
    if not splits.augment:
        lines = [f"train, val  the same {len(splits.train)} images, without augmentation (--overfit)"]
    elif splits.val is not None:
        lines += [f"val         {splits.val.report.lines()[0]}", *splits.val.report.lines()[1:]]
    else:
        lines.append(f"val         none: {splits.missing} not found; training goes on without evaluation")
    lines.append(f"classes     {splits.categories.num_classes}: {_names(splits)}")
    return lines


def _names(splits: Splits) -> str:
    names = list(splits.categories.names_by_id.values())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
