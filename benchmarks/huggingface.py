"""Time and memory of our Deformable-DETR against Hugging Face's `DeformableDetrForObjectDetection` of the same sizes.

    python benchmarks/huggingface.py --threads 1
    python benchmarks/huggingface.py --scale paper --rounds 5

Both are built without branches from the same preset: backbone with frozen batch norm and memory format, widths, layers,
queries, levels, dropout, two stages, box refinement; the numbers of parameters, and of those that are trained, must be
equal. Both get the same images and objects, AdamW and clipping, and sample by `grid_sample`, unless `--kernel` gives
ours another kernel. A step is forward pass, matching, losses, backward pass, clipping and update. Ours also supervises
the proposals of the first stage and checks that losses and gradients are finite; Hugging Face's does neither.

Ratios are ours to theirs. Memory is what a first step, or a first inference, of a process of its own takes above what
it held before. Images and weights are random: neither changes the cost. Needs the package `transformers`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, TimmBackboneConfig

from benchmarks.report import Row, give, parse
from benchmarks.steps import Inputs, Subject, add_inputs, classes_of, config_of, inputs_of
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.experiments.cost.memory import megabytes_alone, rise
from lora_detr.models.backbones import ResNetConfig
from lora_detr.ops.sampling_choice import PLAIN, VARIABLE
from lora_detr.recipe.optimisation import OptimizerConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch
from lora_detr.training.seeding import seed_everything

OURS, THEIRS = "ours", "huggingface"
STEP, INFERENCE = "training step", "inference"


@dataclass(frozen=True)
class Scale:
    """What both are built from, and on what they are measured unless told otherwise.

    Attributes:
        system: preset without branches.
        size: (height, width) of the images.
        batch: number of images.
    """

    system: str
    size: tuple[int, int]
    batch: int


SCALES = {
    "tiny": Scale("deformable-tiny", (256, 256), 4),
    "paper": Scale("deformable", (480, 640), 1),
}


class Measured(Protocol):
    """One of the two."""

    model: nn.Module

    def step(self) -> None:
        """Train once."""

    def infer(self) -> None:
        """Detect once."""


class HuggingFace:
    """Their detector, what trains it, and its images.

    Args:
        system: preset that sizes are taken from.
        inputs: what it is given.
    """

    def __init__(self, system: str, inputs: Inputs) -> None:
        config = config_of(system)
        classes = classes_of(config)
        seed_everything(0)
        self.model = build(config, classes).to(inputs.device)
        settings = config.train.optimizer
        self.clip_norm = float("inf") if settings.clip_norm is None else settings.clip_norm
        self.optimizer = optimizer_of(self.model, settings, 0.1)
        batch = inputs.draw(classes)
        form = torch.channels_last if config.model.backbone.channels_last else torch.contiguous_format
        self.pixels = batch.images.pixels.contiguous(memory_format=form)
        self.mask = (~batch.images.padding).long()
        self.labels = labels_of(batch)

    def step(self) -> None:
        """Train once; the model must be in training mode."""
        update(self.optimizer, self.model, self.pixels, self.mask, self.labels, self.clip_norm)

    @torch.no_grad()
    def infer(self) -> None:
        """Detect; the model must be in evaluation mode."""
        self.model(pixel_values=self.pixels, pixel_mask=self.mask)


def optimizer_of(model: DeformableDetrForObjectDetection, settings: OptimizerConfig, scale: float) -> torch.optim.AdamW:
    """Return what trains their detector; the second group is what is trained of the backbone, at a scaled rate."""
    backbone = list(model.model.backbone.parameters())
    own = set(backbone)
    rest = [parameter for parameter in model.parameters() if parameter not in own]
    trained = [parameter for parameter in backbone if parameter.requires_grad]
    return torch.optim.AdamW(
        [{"params": rest}, {"params": trained, "lr": scale * settings.lr}],
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def labels_of(batch: Batch) -> list[dict[str, Tensor]]:
    """Return the objects of a batch as their detector takes them."""
    return [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]


def update(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    pixels: Tensor,
    mask: Tensor,
    labels: list[dict[str, Tensor]],
    clip_norm: float,
) -> None:
    """Train their detector once.

    Args:
        optimizer: of all that is trained.
        model: in training mode.
        pixels: [B, 3, H, W], normalised.
        mask: int64 [B, H, W], 1 where there is an image.
        labels: see ``labels_of``.
        clip_norm: limit of the norm of the whole gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    model(pixel_values=pixels, pixel_mask=mask, labels=labels).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


def build(config: RunConfig, classes: int) -> DeformableDetrForObjectDetection:
    """Return Hugging Face's detector of the sizes of ours, as much of it frozen."""
    sizes, backbone = config.model, config.model.backbone
    strides = (8, 16, 32) if isinstance(backbone, ResNetConfig) else backbone.strides
    settings = DeformableDetrConfig(
        # Their own way to freeze batch norm loses the activation that timm joins to it in some networks.
        backbone_config=TimmBackboneConfig(
            backbone=backbone.name,
            out_indices=[stride.bit_length() - 2 for stride in strides],
            use_pretrained_backbone=False,
            freeze_batch_norm_2d=True,
        ),
        num_labels=classes,
        d_model=sizes.hidden_dim,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers,
        encoder_ffn_dim=sizes.ffn_dim,
        decoder_ffn_dim=sizes.ffn_dim,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        encoder_n_points=sizes.points,
        decoder_n_points=sizes.points,
        num_feature_levels=sizes.levels,
        dropout=sizes.dropout,
        attention_dropout=sizes.dropout,
        activation_dropout=sizes.dropout,
        two_stage=True,
        two_stage_num_proposals=sizes.num_queries,
        with_box_refine=True,
        auxiliary_loss=True,
    )
    model = DeformableDetrForObjectDetection(settings)
    if backbone.channels_last:
        model.model.backbone.to(memory_format=torch.channels_last)
    if isinstance(backbone, ResNetConfig) and backbone.freeze_stem:
        for name, parameter in model.model.backbone.model.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return model


def pair(system: str, inputs: Inputs) -> dict[str, Measured]:
    """Return theirs and ours.

    Raises:
        SystemExit: they are not of the same size, so that times could not be compared.
    """
    both: dict[str, Measured] = {THEIRS: HuggingFace(system, inputs), OURS: Subject(system, inputs)}
    theirs, ours = (count(one.model) for one in both.values())
    if theirs != ours:
        raise SystemExit(f"parameters, and those that are trained: ours {ours}, theirs {theirs}; expected the same")
    return both


def count(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters, and of those that are trained."""
    parameters = list(model.parameters())
    return sum(one.numel() for one in parameters), sum(one.numel() for one in parameters if one.requires_grad)


def rows(scale: str, inputs: Inputs, rounds: int, memory: Callable[[str, str], float | None]) -> list[Row]:
    """Measure a step and inference of both.

    Args:
        scale: name of the sizes.
        inputs: what both are given.
        rounds: that count.
        memory: returns the MB of what is measured (``STEP``, ``INFERENCE``) of one side (``OURS``, ``THEIRS``).
    """
    both = pair(SCALES[scale].system, inputs)
    found: list[Row] = []
    for what in (STEP, INFERENCE):
        theirs, ours = interleaved([_way(what, one) for one in both.values()], rounds, 2, inputs.device)
        our_memory, their_memory = memory(what, OURS), memory(what, THEIRS)
        found.append(
            {
                "what": what,
                "scale": scale,
                "ours_seconds": ours.seconds,
                "huggingface_seconds": theirs.seconds,
                "ratio": ours.ratio,
                "lowest": ours.lowest,
                "highest": ours.highest,
                "ours_mb": our_memory,
                "huggingface_mb": their_memory,
                "memory_ratio": None if our_memory is None or their_memory is None else our_memory / their_memory,
                "ours_parameters": count(both[OURS].model)[0],
                "huggingface_parameters": count(both[THEIRS].model)[0],
            }
        )
    return found


def bytes_of(what: str, side: str, system: str, inputs: Inputs) -> int | None:
    """Return what the first step or inference of one side adds to what this process holds."""
    one: Measured = Subject(system, inputs) if side == OURS else HuggingFace(system, inputs)
    return rise(_way(what, one), inputs.device)


def _way(what: str, one: Measured) -> Callable[[], None]:
    """Return what is timed, and put the model into the mode for it."""
    one.model.train(what == STEP)
    return one.step if what == STEP else one.infer


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--kernel", choices=("auto", *PLAIN), default="grid-sample", help="of our attention")
    add_inputs(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--alone", nargs=2, metavar=("WHAT", "SIDE"), help=argparse.SUPPRESS)
    given = parse(parser)
    os.environ[VARIABLE] = given.kernel
    scale = SCALES[given.scale]
    inputs = inputs_of(given, scale.size, scale.batch)
    if given.alone is not None:
        print(json.dumps(bytes_of(*given.alone, scale.system, inputs)))
        return

    def memory(what: str, side: str) -> float | None:
        options = [*inputs.options(), "--scale", given.scale, "--kernel", given.kernel, "--alone", what, side]
        return megabytes_alone(__file__, options)

    del given.alone
    give(rows(given.scale, inputs, given.rounds, memory), given)


if __name__ == "__main__":
    main()
