"""The side-car: branches read what the decoder publishes; dropping them leaves the detector as it was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from lora_detr.branches.classes import BranchClasses
from lora_detr.structures import Branch, BranchOutput, Detector, DetectorOutput, Images, Prediction, Target

D = TypeVar("D", bound=nn.Module)


class AuxiliaryBranches(nn.Module):
    """All branches of a detector, in the order of its configuration.

    Args:
        branches: may be empty; ``forward`` then returns None.
        classes: class layers in place of the primary's; None where they are shared.
    """

    def __init__(self, branches: Sequence[Branch], classes: BranchClasses | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.members = nn.ModuleList(cast(Sequence[nn.Module], branches))
        # Neighbours that are computed together: those of one kind, in runs that treat the reference alike.
        self.runs = [
            (follows, [[i for i, _ in same] for _, same in groupby(run, key=lambda item: type(item[1]))])
            for follows, run in groupby(enumerate(branches), key=lambda item: item[1].follows_reference)
        ]

    def __len__(self) -> int:
        return len(self.members)

    def forward(self, output: DetectorOutput, detector: Detector) -> BranchOutput | None:
        """Predict with every branch at every decoder layer; the heads run once a layer on all branches of a kind.

        The reference that boxes refine is detached, unless a branch says otherwise.

        Args:
            output: of the detector.
            detector: lends its FFNs and heads.
        """
        if not self.members:
            return None
        members = cast(list[Branch], list(self.members))
        # After the decoder and not in it: no branch feeds the next layer (Eqs. 5-6). Branches are stacked, and heads
        # shared with the primary path run once on the stack: five branches issue about as many operations as one.
        predictions, hidden_states = [], []
        for i, layer in enumerate(output.layers):
            parts: list[Tensor] = []
            answers: list[Prediction] = []
            for follows, kinds in self.runs:
                stacks = [
                    members[same[0]].forward_stack([members[j] for j in same], i, detector.ffn(i), layer)
                    for same in kinds
                ]
                hidden = _joined(stacks)  # [N of the run, B, Q, D]
                # With look forward twice the reference has a gradient to the heads of the layer before. Branches
                # do not train those in the authors' code; that of MS-DETR does.
                reference = layer.reference if follows else layer.reference.detach()
                answers.append(self._predict(i, hidden, reference, [j for same in kinds for j in same], detector))
                parts.append(hidden)
            boxes, logits = _joined([one.boxes for one in answers]), _joined([one.logits for one in answers])
            predictions.append(Prediction(logits, boxes))
            hidden_states.append(_joined(parts))
        return BranchOutput(tuple(predictions), tuple(hidden_states))

    def _predict(
        self, layer: int, hidden: Tensor, reference: Tensor, members: Sequence[int], detector: Detector
    ) -> Prediction:
        own = self.classes
        if own is None:
            return detector.predict(layer, hidden, reference)

        def classes(normed: Tensor) -> Tensor:
            return cast(Tensor, own(layer, normed, members, detector.class_layer(layer)))

        return detector.predict(layer, hidden, reference, classes)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
