"""Class and box heads: one pair for each decoder layer and, last, one for the proposals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.ops.positional import inverse_sigmoid
from lora_detr.structures import Prediction

# A class starts at this probability, so that the first steps are not spent on silencing background.
PRIOR_PROBABILITY = 0.01


def start_rare(class_head: nn.Linear) -> None:
    """Set the bias so that every class starts at its prior probability."""
    nn.init.constant_(class_head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))


class BoxHead(nn.Module):
    """Three linear layers from a query to four box logits, with ReLU between."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, 4))
        )

    def start_without_refinement(self) -> None:
        """Make the head answer zero, whatever it is given, until it is trained."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to [..., 4]."""
        for layer in self.layers[:-1]:
            hidden = F.relu(layer(hidden))
        out: Tensor = self.layers[-1](hidden)
        return out


class Heads(nn.Module):
    """The heads of L decoder layers and, at index L, of the encoder's proposals.

    Args:
        count: number of pairs, L + 1.
        hidden_dim: D.
        num_classes: K.
        eps: of the inverse sigmoid that turns a reference into logits.
        normalised: the heads of decoder layers read a LayerNorm of the hidden state, which they share (Relation-DETR).
    """

    def __init__(self, count: int, hidden_dim: int, num_classes: int, eps: float, normalised: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.norm = nn.LayerNorm(hidden_dim) if normalised else nn.Identity()
        self.classes = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(count))
        self.boxes = nn.ModuleList(BoxHead(hidden_dim) for _ in range(count))

    def initialise(self) -> None:
        """Start every layer from copies of one pair: prior probability for classes, no refinement for boxes."""
        first_class, first_box = self.classes[0], self.boxes[0]
        assert isinstance(first_class, nn.Linear)
        assert isinstance(first_box, BoxHead)
        start_rare(first_class)
        first_box.start_without_refinement()
        self.copy_first(len(self.classes))

    def copy_first(self, count: int) -> None:
        """Make copies of the first pair of the first ``count``."""
        for i in range(1, count):
            self.classes[i] = copy.deepcopy(self.classes[0])
            self.boxes[i] = copy.deepcopy(self.boxes[0])

    def predict(
        self, index: int, hidden: Tensor, reference: Tensor, classes: Callable[[Tensor], Tensor] | None = None
    ) -> Prediction:
        """Apply the pair of decoder layer ``index`` to hidden states, refining a reference.

        Args:
            index: decoder layer.
            hidden: [..., Q, D]; leading axes, such as one of branches, are free.
            reference: [B, Q, 4], broadcast over leading axes; gradient flows to it unless the caller detached it.
            classes: in place of the class layer of the pair.

        Returns:
            Prediction in float32, whatever the precision of ``hidden``.
        """
        hidden = self.norm(hidden)
        boxes = self.refine(index, hidden, reference)
        logits: Tensor = (classes or self.classes[index])(hidden)
        return Prediction(logits.float(), boxes)

    def refine(self, index: int, hidden: Tensor, reference: Tensor) -> Tensor:
        """Return the box [..., Q, 4] that head ``index`` makes of a reference; the hidden state is read as it is."""
        offset = self.boxes[index](hidden).float()
        box: Tensor = (offset + inverse_sigmoid(reference, self.eps)).sigmoid()
        return box
