"""Auxiliary branches: the closed list of kinds, and the side-car that carries them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SerializeAsAny

from lora_detr.branches.classes import BranchClasses
from lora_detr.branches.ffn import CrossFFNConfig, FFNBranch, FFNConfig
from lora_detr.branches.lora import LoRABranch, LoRAConfig, share_first_draw
from lora_detr.branches.sidecar import AuxiliaryBranches, BranchedDetector
from lora_detr.config.base import Strict
from lora_detr.config.installed import or_installed

# Entry points of installed packages that offer kinds of branches.
BRANCH_GROUP = "lora_detr.branches"
BranchConfig = Annotated[
    SerializeAsAny[Annotated[LoRAConfig | FFNConfig | CrossFFNConfig, Field(discriminator="kind")]],
    or_installed(BRANCH_GROUP, Strict),
]

__all__ = [
    "BRANCH_GROUP",
    "AuxiliaryBranches",
    "BranchClasses",
    "BranchConfig",
    "BranchedDetector",
    "CrossFFNConfig",
    "FFNBranch",
    "FFNConfig",
    "LoRABranch",
    "LoRAConfig",
    "share_first_draw",
]
