"""Class and box heads: one pair for each decoder layer and, last, one for the proposals."""

from __future__ import annotations

import copy
import math

import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.ops.positional import inverse_sigmoid
from lora_detr.structures import Prediction

# A class starts at this probability, so that the first steps are not spent on silencing background.
PRIOR_PROBABILITY = 0.01


class BoxHead(nn.Module):
    """Three linear layers from a query to four box logits, with ReLU between."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, 4))
        )

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
    """

    def __init__(self, count: int, hidden_dim: int, num_classes: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.classes = nn.ModuleList(nn.Linear(hidden_dim, num_classes) for _ in range(count))
        self.boxes = nn.ModuleList(BoxHead(hidden_dim) for _ in range(count))

    def initialise(self) -> None:
        """Start every layer from copies of one pair: prior probability for classes, no refinement for boxes."""
        first_class, first_box = self.classes[0], self.boxes[0]
        assert isinstance(first_class, nn.Linear)
        assert isinstance(first_box, BoxHead)
        nn.init.constant_(first_class.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
        last = first_box.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        for i in range(1, len(self.classes)):
            self.classes[i] = copy.deepcopy(first_class)
            self.boxes[i] = copy.deepcopy(first_box)

    def predict(self, index: int, hidden: Tensor, reference: Tensor) -> Prediction:
        """Apply pair ``index`` to hidden states, refining a reference.

        Args:
            index: decoder layer, or L for the proposals.
            hidden: [..., Q, D]; leading axes, such as one of branches, are free.
            reference: [B, Q, 4], broadcast over leading axes; gradient flows to it unless the caller detached it.

        Returns:
            Prediction in float32, whatever the precision of ``hidden``.
        """
        offset = self.boxes[index](hidden).float()
        return Prediction(
            self.classes[index](hidden).float(), (offset + inverse_sigmoid(reference, self.eps)).sigmoid()
        )
