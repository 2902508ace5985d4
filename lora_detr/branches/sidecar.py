"""The side-car: branches read what the decoder publishes; dropping them leaves the detector as it was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lora_detr.branches.lora import LoRABranch
from lora_detr.structures import BranchOutput, Detector, DetectorOutput, Images, Target

D = TypeVar("D", bound=nn.Module)


class AuxiliaryBranches(nn.Module):
    """All branches of a detector, in the order of its configuration.

    Args:
        branches: may be empty; ``forward`` then returns None.
    """

    def __init__(self, branches: Sequence[LoRABranch]) -> None:
        super().__init__()
        self.members = nn.ModuleList(branches)

    def __len__(self) -> int:
        return len(self.members)

    def forward(self, output: DetectorOutput, detector: Detector) -> BranchOutput | None:
        """Predict with every branch at every decoder layer; the heads run once a layer on all branches.

        The reference that boxes refine is detached: a branch trains its own layer, not the layer before.

        Args:
            output: of the detector.
            detector: lends its FFNs and heads.
        """
        if not self.members:
            return None
        predictions, hidden_states = [], []
        for i, layer in enumerate(output.layers):
            parts: list[Tensor] = []
            for kind, run in groupby(self.members, key=type):
                parts.append(kind.forward_stack(list(run), i, detector.ffn(i), layer))  # type: ignore[attr-defined]
            hidden = parts[0] if len(parts) == 1 else torch.cat(parts)  # [N, B, Q, D]
            predictions.append(detector.predict(i, hidden, layer.reference.detach()))
            hidden_states.append(hidden)
        return BranchOutput(tuple(predictions), tuple(hidden_states))


class BranchedDetector(nn.Module, Generic[D]):
    """A detector and its branches as one module, for training.

    In a state dict, keys begin ``detector.`` or ``branches.``; inference needs the first kind only.

    Args:
        detector: satisfies ``Detector``.
        branches: the side-car.
    """

    def __init__(self, detector: D, branches: AuxiliaryBranches) -> None:
        super().__init__()
        self.detector = detector
        self.branches = branches

    def forward(
        self, images: Images, targets: Sequence[Target] | None = None
    ) -> tuple[DetectorOutput, BranchOutput | None]:
        """Run the detector, then the branches on what it published."""
        output: DetectorOutput = self.detector(images, targets)
        return output, self.branches(output, self.detector)
