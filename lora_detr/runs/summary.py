"""What a run says about itself before it starts."""

from __future__ import annotations

from pathlib import Path

import torch

from lora_detr.branches import LoRAConfig
from lora_detr.checkpoints.initial_weights import BACKBONE, Initialised
from lora_detr.data.coco.plausibility import imbalance
from lora_detr.data.quality.detector_limits import limit_findings
from lora_detr.errors import counted, listed
from lora_detr.models import HuggingFaceConfig, RelationDetrConfig, TwoStageDetector
from lora_detr.models.backbones import TimmConfig
from lora_detr.models.backbones.weights import NONE
from lora_detr.processes.threads import describe_threads
from lora_detr.recipe.loaders import Splits, limits_of
from lora_detr.recipe.run_config import DataConfig, RunConfig
from lora_detr.runs.rehearsal import StepCost
from lora_detr.training.trainer import Trainer

FROM_SCRATCH = "from scratch"


def summary_lines(
    trainer: Trainer, preset: str, output: Path, initialised: Initialised | None, cost: StepCost | None
) -> list[str]:
    """Return detector, branches, parameters, data, schedule, time and devices, a line or a few each.

    Args:
        trainer: about to start.
        preset: name of the configuration.
        output: run directory.
        initialised: what was taken from ``--weights``.
        cost: of a step, if it was measured.
    """
    config, world = trainer.config, trainer.world
    everything = sum(p.numel() for p in trainer.model.parameters())
    branches = sum(p.numel() for p in trainer.model.branches.parameters())
    detector = trainer.model.detector
    of_groups = detector.query_groups.parameters() if isinstance(detector, TwoStageDetector) else ()
    groups = sum(p.numel() for p in of_groups)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return [
        f"preset      {preset}",
        f"detector    {config.model.describe(_weights_of(config, initialised))}",
        *_branch_lines(config),
        *_group_lines(config),
        f"parameters  {everything / 1e6:.2f} M: {(everything - branches - groups) / 1e6:.2f} M stay after strip, "
        f"{branches / 1e6:.2f} M in branches, "
        + (f"{groups / 1e6:.2f} M in query groups, " if groups else "")
        + f"{trained / 1e6:.2f} M are trained",
        *([f"frozen      {', '.join(config.train.freeze)}"] if config.train.freeze else []),
        *([f"recomputed  {', '.join(config.train.recompute)}"] if config.train.recompute else []),
        *_random_frozen_lines(config, initialised),
        *_weights_lines(initialised),
        *_data_lines(trainer.splits, config.data),
        *_limit_lines(trainer.splits, config),
        f"schedule    {trainer.plan.total_steps} steps ({trainer.plan.steps_per_epoch} per epoch), {_rate(trainer)}, "
        f"{config.train.precision}"
        + ("" if trainer.average is None else f", weights averaged (EMA {trainer.average.decay:g})"),
        *_cost_lines(trainer, cost),
        f"device      {world.device}, {counted(world.size, 'process', 'processes')}"
        + (f", {describe_threads(torch.get_num_threads())}" if world.device.type == "cpu" else ""),
        f"output      {output}",
    ]


def _cost_lines(trainer: Trainer, cost: StepCost | None) -> list[str]:
    if cost is None:
        return []
    processes = trainer.world.size
    return [
        f"time        {cost.describe_time(trainer.plan.steps_per_epoch, processes)}",
        f"memory      {cost.describe_memory(processes)}",
    ]


def _rate(trainer: Trainer) -> str:
    rate, batch = trainer.config.train.optimizer, trainer.plan.global_batch
    if batch == rate.reference_batch:
        return f"global batch {batch}, lr {rate.lr:g}"
    if rate.scale_lr == "none":
        return f"global batch {batch}, lr {rate.lr:g} (meant for a batch of {rate.reference_batch}; --scale-lr adapts)"
    return (
        f"global batch {batch}, lr {rate.rate_for(batch):g} ({rate.lr:g} for {rate.reference_batch}, {rate.scale_lr})"
    )


def _weights_lines(initialised: Initialised | None) -> list[str]:
    if initialised is None:
        return []
    first, *others = initialised.lines()
    return [f"weights     {first}", *(f"            {line}" for line in others)]


def _weights_of(config: RunConfig, initialised: Initialised | None) -> str:
    if isinstance(config.model, HuggingFaceConfig):
        return f" ({FROM_SCRATCH})" if initialised is None else ""
    return f" ({_weights(config.model.backbone.weights, initialised)})"


def _weights(name: str, initialised: Initialised | None) -> str:
    if initialised is not None and not any(key.startswith(BACKBONE) for key in initialised.reinitialised):
        return "weights given"
    return FROM_SCRATCH if name == NONE else f"{name} weights"


def _random_frozen_lines(config: RunConfig, initialised: Initialised | None) -> list[str]:
    """Warn of stages that would stay at their random start."""
    if isinstance(config.model, HuggingFaceConfig):
        return []
    backbone = config.model.backbone
    stages = backbone.freeze_stages if isinstance(backbone, TimmConfig) else int(bool(backbone.freeze_stem))
    if not stages or _weights(backbone.weights, initialised) != FROM_SCRATCH:
        return []
    key = "freeze_stages=0" if isinstance(backbone, TimmConfig) else "freeze_stem=false"
    return [
        f"warning     the first {stages} stages of the backbone are frozen at their random start; "
        f"--set model.backbone.{key} trains them"
    ]


def _branch_lines(config: RunConfig) -> list[str]:
    if not config.branches:
        return ["branches    none"]
    lines = []
    for name, branch in zip(config.branch_names, config.branches, strict=True):
        rank = f" rank {branch.rank}" if isinstance(branch, LoRAConfig) else ""
        lines.append(f"{name:<12}{branch.kind}{rank}, {branch.matcher.describe()}")
    return lines


def _group_lines(config: RunConfig) -> list[str]:
    """Return a line for each group of queries that only training has."""
    lines: list[str] = []
    if isinstance(config.model, HuggingFaceConfig):
        return lines
    if isinstance(config.model, RelationDetrConfig) and config.model.denoising is not None:
        lines.append(f"denoising   about {config.model.denoising.num_queries} noised targets and as many to reject")
    hybrid, repeats = config.model.hybrid, config.loss.hybrid.repeats
    if hybrid is not None:
        # A small image has fewer tokens than that, and so fewer queries.
        lines.append(f"hybrid      at most {hybrid.num_queries} queries, targets repeated {repeats} times")
    if config.model.dac:
        matcher = config.loss.dac.matcher
        lines.append(f"dac         a pass without self-attention, {matcher.kind} k={matcher.k}")
    return lines


def _data_lines(splits: Splits, data: DataConfig) -> list[str]:
    lines = [f"train       {splits.train.report.lines()[0]}", *splits.train.report.lines()[1:]]
    if not splits.augment:
        lines = [f"train, val  the same {counted(len(splits.train), 'image')}, without augmentation (--overfit)"]
    elif splits.val is not None:
        lines += [f"val         {splits.val.report.lines()[0]}", *splits.val.report.lines()[1:]]
    else:
        lines.append(
            f"val         none: {splits.missing} not found; training continues without evaluation "
            f"(loradetr data convert {data.path} OUT --split val=0.2 makes a split)"
        )
    if data.train.sampling == "uniform" and splits.augment:
        objects = [(each.name, each.objects) for each in splits.train.report.per_category]
        lines += [f"            {finding}" for finding in imbalance(splits.train.report.file, objects)]
    lines.append(f"classes     {splits.categories.num_classes}: {listed(splits.categories.names_by_id.values(), 8)}")
    return lines


def _limit_lines(splits: Splits, config: RunConfig) -> list[str]:
    """Warn of objects that can never be found, or hardly."""
    own = [splits.train] if splits.val is None or not splits.augment else [splits.train, splits.val]
    return [f"warning     {finding}" for finding in limit_findings(own, limits_of(config))]
