"""Queries that exist in training only: denoising, hybrid, and a pass without self-attention.

They change queries or attention and therefore belong to the detector, but nothing of them is read at inference: all
their parameters stand under ``query_groups``, and a detector built for deployment has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor, nn

from lora_detr.config.base import Strict
from lora_detr.models.decoder import INFERENCE, DecoderPass
from lora_detr.models.denoising import MAX_QUERIES, DenoisingQueries
from lora_detr.models.heads import BoxHead
from lora_detr.models.proposals import DescribedTokens, InitialQueries, Proposals, ProposedBoxes
from lora_detr.structures import DecoderLayerOutput, EncoderOutput, Prediction, QueryGroupOutput, Target

Decode = Callable[[InitialQueries, DecoderPass], tuple[DecoderLayerOutput, ...]]


class HybridConfig(Strict):
    """A group of further queries that are matched one to one with repeated targets (H-DETR)."""

    # H-DETR's number, and that of Relation-DETR's code.
    num_queries: int = Field(1500, ge=1, le=MAX_QUERIES)
    """Queries of the group; as many of them are used as there are memory tokens left."""


class HybridQueries(nn.Module):
    """The one-to-many group of H-DETR: further proposals, decoded with the same weights.

    Args:
        hidden_dim: D.
        num_queries: of the group.
        table: the content of queries is learned; else it is made of their boxes, as for the primary queries.
        num_classes: K of proposal heads of its own (Relation-DETR); None ranks by the primary ones and takes the
            tokens behind those that became primary queries (H-DETR).
    """

    def __init__(self, hidden_dim: int, num_queries: int, table: bool, num_classes: int | None) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.content = nn.Embedding(num_queries, hidden_dim) if table else None
        self.classes = nn.Linear(hidden_dim, num_classes) if num_classes is not None else None
        self.boxes = BoxHead(hidden_dim) if num_classes is not None else None

    def forward(
        self, proposals: Proposals, described: DescribedTokens, primary: ProposedBoxes
    ) -> tuple[InitialQueries, EncoderOutput | None]:
        """Return the group's queries, and its proposals if it has heads of its own.

        Args:
            proposals: of the detector.
            described: S memory tokens [B, S, D].
            primary: proposals of the primary path, over all S tokens.

        Returns:
            At most ``num_queries`` queries; fewer, down to none, where the tokens are used up.
        """
        if self.classes is not None and self.boxes is not None:
            proposed = proposals.propose(described, self.classes, self.boxes)
            selected = proposals.ranked(proposed, self.num_queries)
            return proposals.queries(proposed, selected, self.content), proposed.publish(selected)
        taken = proposals.num_queries
        selected = proposals.ranked(primary, taken + self.num_queries)[:, taken:]
        return proposals.queries(primary, selected, self.content), None


@dataclass(frozen=True)
class Decoded:
    """What training decodes.

    Attributes:
        layers: of the primary queries.
        groups: of all other queries, in a fixed order.
    """

    layers: tuple[DecoderLayerOutput, ...]
    groups: tuple[QueryGroupOutput, ...]


class QueryGroups(nn.Module):
    """All query groups of a detector; without any, training decodes what inference does.

    Args:
        denoising: noised targets as queries.
        hybrid: further queries for repeated targets.
        dac: decode the primary queries a second time without self-attention (DAC-DETR).
    """

    def __init__(
        self, denoising: DenoisingQueries | None = None, hybrid: HybridQueries | None = None, dac: bool = False
    ) -> None:
        super().__init__()
        self.denoising = denoising
        self.hybrid = hybrid
        self.dac = dac

    def forward(
        self,
        queries: InitialQueries,
        proposals: Proposals,
        described: DescribedTokens,
        proposed: ProposedBoxes,
        decode: Decode,
        targets: Sequence[Target] | None,
    ) -> Decoded:
        """Decode the primary queries and those of all groups.

        Args:
            queries: primary ones.
            proposals: made them.
            described: all memory tokens.
            proposed: boxes of all memory tokens.
            decode: runs the decoder.
            targets: of the batch; without them there is nothing to denoise.
        """
        groups = []
        if self.denoising is not None and targets is not None:
            # One pass, since noised queries attend to the primary ones; the mask keeps the primary from seeing targets.
            noised = self.denoising(targets, queries.content.shape[1])
            slots = noised.content.shape[1]
            reference = torch.cat((noised.reference, queries.reference), 1)
            joined = InitialQueries(reference, torch.cat((noised.content, queries.content), 1), None)
            decoded = decode(joined, DecoderPass(mask=noised.mask))
            layers = tuple(sliced(layer, slots, None) for layer in decoded)
            found = tuple(sliced(layer, 0, slots).prediction for layer in decoded)
            groups.append(QueryGroupOutput("denoising", found, pairs=noised.pairs, copies=noised.groups))
        else:
            layers = decode(queries, INFERENCE)
        if self.hybrid is not None:
            # A pass of its own needs no mask. No position relation, as in Relation-DETR's code.
            further, encoder = self.hybrid(proposals, described, proposed)
            found = tuple(layer.prediction for layer in decode(further, DecoderPass(relation=False)))
            groups.append(QueryGroupOutput("hybrid", found, encoder))
        # Self-attention is what lets queries suppress duplicates; one-to-many targets reward them (DAC-DETR).
        if self.dac:
            parted = decode(queries, DecoderPass(self_attention=False))
            found = tuple(replace(layer.prediction, reference=layer.reference.detach()) for layer in parted)
            groups.append(QueryGroupOutput("dac", found))
        return Decoded(layers, tuple(groups))


def sliced(layer: DecoderLayerOutput, start: int, end: int | None) -> DecoderLayerOutput:
    """Return what a layer published of queries ``start`` to ``end``."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:, start:end]

    return DecoderLayerOutput(
        cut(layer.cross_output),
        cut(layer.ffn_input),
        cut(layer.ffn_hidden),
        cut(layer.hidden),
        cut(layer.reference),
        Prediction(cut(layer.prediction.logits), cut(layer.prediction.boxes)),
    )
