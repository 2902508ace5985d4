"""Small checkpoints in the format of the authors' code, with random weights, of every system that can be read."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_detr.branches import BranchedDetector
from lora_detr.checkpoints.official.file import BIAS_TABLE, POSITION_INDEX, position_index
from lora_detr.checkpoints.official.keys import Family, aliases, to_official
from lora_detr.config.load import load_config
from lora_detr.models import RelationDetrConfig, TwoStageDetector
from lora_detr.recipe.run_config import RunConfig

SIZES = (
    "model.hidden_dim=32",
    "model.ffn_dim=48",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.points=2",
    "model.backbone.name=resnet18",
)
RELATION_SIZES = (*SIZES, "model.heads=4", "model.num_queries=12", "model.hybrid.num_queries=9")
RANKS = "branches.0.rank=4", "branches.1.rank=3", "branches.2.rank=2"

SYSTEMS: dict[str, tuple[str, ...]] = {
    "deformable": SIZES,
    "deformable-pp": (*SIZES, "model.num_queries=12"),
    "deformable-lora3": (*SIZES, *RANKS),
    "deformable-ffn3": SIZES,
    "ms-detr": SIZES,
    "ms-detr-pp": (*SIZES, "model.num_queries=12"),
    "relation": RELATION_SIZES,
    "relation-lora3": (*RELATION_SIZES, *RANKS),
}
"""Preset -> what makes it small. The number of queries of a file that does not say it stays the preset's."""


@dataclass(frozen=True)
class Official:
    """A small model and its tensors by official name, heads twice.

    Attributes:
        config: of the model.
        model: in evaluation mode.
        tensors: in an order that is not the model's.
    """

    config: RunConfig
    model: BranchedDetector[TwoStageDetector]
    tensors: dict[str, Tensor]

    def save(self, path: Path) -> Path:
        """Write it as the authors' code does, with things beside the weights, and return the path."""
        beside = {"epoch": 11, "args": argparse.Namespace(lr=2e-4), "optimizer": {"state": {}}}
        torch.save({"model": self.tensors, **beside}, path)
        return path


def make(preset: str, *overrides: str, num_classes: int = 91) -> Official:
    """Return a small model of a preset; ``overrides`` are stronger than its small sizes."""
    config = load_config(RunConfig, preset=preset, overrides=(*SYSTEMS.get(preset, ()), *overrides)).config
    return of_config(config, num_classes)


def of_config(config: RunConfig, num_classes: int = 91) -> Official:
    """Return a model with weights near its start, and no two tensors alike."""
    model = config.build_model(num_classes, load_weights=False).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # A random network with frozen batch norm would let values grow from block to block.
            tensor += 0.02 * torch.rand_like(tensor) + 5.0 * name.endswith("running_var")
    return Official(config, model, tensors_of(config, model))


def tensors_of(config: RunConfig, model: BranchedDetector[TwoStageDetector]) -> dict[str, Tensor]:
    """Return the tensors of a model by official name, in reverse, so that the order says something."""
    family: Family = "relation" if isinstance(config.model, RelationDetrConfig) else "deformable"
    named: dict[str, Tensor] = {}
    for ours, tensor in reversed(model.state_dict().items()):
        official = to_official(ours, family=family, num_layers=config.model.decoder_layers)
        assert official is not None, ours
        named[official] = tensor.clone()
        if official.endswith(BIAS_TABLE):
            named[official.replace(BIAS_TABLE, POSITION_INDEX)] = position_index(tensor)
    return named | {second: named[first] for first, second in aliases(named).items()}
