"""Auxiliary branches: the closed list of kinds, and the side-car that carries them."""

from __future__ import annotations

from lora_detr.branches.lora import LoRABranch, LoRAConfig
from lora_detr.branches.sidecar import AuxiliaryBranches, BranchedDetector

# One member so far; the next makes this a union discriminated by ``kind``.
BranchConfig = LoRAConfig

__all__ = ["AuxiliaryBranches", "BranchConfig", "BranchedDetector", "LoRABranch", "LoRAConfig"]
