"""Class layers for branches that do not use, or do not train, those of the primary path."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_detr.structures import ClassLayer


class BranchClasses(nn.Module):
    """The class layers of all branches at every decoder layer; they start as copies of the primary's.

    Args:
        kind: whose they are; ``shared`` needs none of this.
        branches: N.
        heads: the primary's, L of them.
    """

    def __init__(self, kind: ClassLayer, branches: int, heads: Sequence[nn.Linear]) -> None:
        super().__init__()
        copies = {"own": 1, "each": branches}.get(kind, 0)
        self.layers = nn.ModuleList(nn.ModuleList(copy.deepcopy(head) for _ in range(copies)) for head in heads)

    def forward(self, layer: int, hidden: Tensor, members: Sequence[int], primary: nn.Linear) -> Tensor:
        """Return the logits [n, B, Q, K] of some branches.

        Args:
            layer: decoder layer.
            hidden: [n, B, Q, D], what the class layer reads.
            members: which branches these are.
            primary: class layer of the primary path.
        """
        own = cast(nn.ModuleList, self.layers[layer])
        if not len(own):
            return F.linear(hidden, primary.weight.detach(), primary.bias.detach())
        if len(own) == 1:
            logits: Tensor = own[0](hidden)
            return logits
        return torch.stack([own[member](part) for member, part in zip(members, hidden, strict=True)])

    def of(self, branch: int, layer: int) -> nn.Linear | None:
        """Return the class layer of a branch; None where it is the primary's."""
        own = list(cast(nn.ModuleList, self.layers[layer]))
        return cast(nn.Linear, own[min(branch, len(own) - 1)]) if own else None

    @torch.no_grad()
    def copy_from(self, heads: Sequence[nn.Linear]) -> None:
        """Make all of them copies of the primary's again."""
        for own, head in zip(self.layers, heads, strict=True):
            for layer in cast(nn.ModuleList, own):
                layer.load_state_dict(head.state_dict())
