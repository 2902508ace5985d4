"""Auxiliary branches: the closed list of kinds, and the side-car that carries them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_detr.branches.ffn import CrossFFNConfig, FFNBranch, FFNConfig
from lora_detr.branches.lora import LoRABranch, LoRAConfig, share_first_draw
from lora_detr.branches.sidecar import AuxiliaryBranches, BranchedDetector

BranchConfig = Annotated[LoRAConfig | FFNConfig | CrossFFNConfig, Field(discriminator="kind")]

__all__ = [
    "AuxiliaryBranches",
    "BranchConfig",
    "BranchedDetector",
    "CrossFFNConfig",
    "FFNBranch",
    "FFNConfig",
    "LoRABranch",
    "LoRAConfig",
    "share_first_draw",
]
