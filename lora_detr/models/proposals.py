"""Two-stage proposals: every memory token proposes a box, the best become initial references and queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lora_detr.models.neck import Tokens
from lora_detr.ops.positional import box_encoding
from lora_detr.ops.ranking import best_first
from lora_detr.structures import EncoderOutput, Prediction

# Side of the anchor on the finest level, relative to the image; each coarser level doubles it.
FINEST_ANCHOR = 0.05
# An anchor whose centre or size leaves this range proposes nothing.
ANCHOR_RANGE = (0.01, 0.99)

Ranking = Literal["foreground", "best-class"]


@dataclass(frozen=True)
class InitialQueries:
    """What the decoder starts from.

    Attributes:
        reference: [B, Q, 4], detached.
        content: [B, Q, D].
        position: [B, Q, D]; None where the decoder makes positions of references by itself.
    """

    reference: Tensor
    content: Tensor
    position: Tensor | None


@dataclass(frozen=True)
class DescribedTokens:
    """Memory tokens as the proposal heads read them.

    Attributes:
        features: [B, S, D].
        anchors: [B, S, 4], logits; +infinity where padded or invalid.
    """

    features: Tensor
    anchors: Tensor


@dataclass(frozen=True)
class ProposedBoxes:
    """What proposal heads make of every token.

    Attributes:
        logits: [B, S, K].
        box_logits: [B, S, 4]; +infinity where padded or invalid.
        anchors: [B, S, 4], logits.
    """

    logits: Tensor
    box_logits: Tensor
    anchors: Tensor

    def publish(self, selected: Tensor) -> EncoderOutput:
        """Join with the tokens [B, Q] that became queries."""
        prediction = Prediction(self.logits, self.box_logits.sigmoid())
        return EncoderOutput(prediction, self.anchors.sigmoid(), selected)

    def references(self, selected: Tensor) -> Tensor:
        """Return the boxes of chosen tokens [B, Q] as references [B, Q, 4], detached."""
        chosen = self.box_logits.gather(1, selected[..., None].expand(-1, -1, 4))
        return chosen.detach().sigmoid()


def anchor_logits(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return the anchors of all tokens as logits [B, S, 4] and a mask [B, S] of tokens that may propose.

    An anchor is centred on its cell, relative to the valid part of the level; +infinity where padded or invalid.
    """
    anchors = []
    start = 0
    for level, (height, width) in enumerate(tokens.shapes):
        padding = tokens.padding[:, start : start + height * width].view(-1, height, width)
        start += height * width
        valid = ~padding
        extent = torch.stack((valid[:, 0, :].sum(1), valid[:, :, 0].sum(1)), -1)  # [B, 2] columns, rows
        device = padding.device
        grid_y, grid_x = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=device),
            torch.arange(width, dtype=torch.float32, device=device),
            indexing="ij",
        )
        centres = (torch.stack((grid_x, grid_y), -1).flatten(0, 1)[None] + 0.5) / extent[:, None]  # [B, HW, 2]
        anchors.append(torch.cat((centres, torch.full_like(centres, FINEST_ANCHOR * 2.0**level)), -1))
    boxes = torch.cat(anchors, 1)
    inside = ((boxes > ANCHOR_RANGE[0]) & (boxes < ANCHOR_RANGE[1])).all(-1)
    usable = inside & ~tokens.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], float("inf"))
    return logits, usable


class Proposals(nn.Module):
    """Describe and score all tokens, choose the best, and turn their boxes into queries.

    Args:
        hidden_dim: D.
        num_queries: Q.
        mixed_selection: take the content of queries from a learned table (Deformable-DETR++) instead of from the
            proposal's box.
        ranking: ``foreground`` ranks tokens by the logit of class 0 alone, the encoder's single foreground class
            (Deformable family); ``best-class`` by their highest logit (Relation-DETR).
        encode_boxes: give queries a position made of their box; false leaves positions to the decoder.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_queries: int,
        mixed_selection: bool,
        ranking: Ranking = "foreground",
        encode_boxes: bool = True,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.ranking = ranking
        self.projection = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.query_projection = nn.Linear(2 * hidden_dim, 2 * hidden_dim) if encode_boxes else None
        self.query_norm = nn.LayerNorm(2 * hidden_dim) if encode_boxes else None
        self.content = nn.Embedding(num_queries, hidden_dim) if mixed_selection else None

    def describe(self, memory: Tensor, tokens: Tokens) -> DescribedTokens:
        """Return what proposal heads read of the memory [B, S, D]; padded and invalid tokens count as zero."""
        anchors, usable = anchor_logits(tokens)
        return DescribedTokens(self.norm(self.projection(memory.masked_fill(~usable[..., None], 0.0))), anchors)

    def propose(self, described: DescribedTokens, class_head: nn.Module, box_head: nn.Module) -> ProposedBoxes:
        """Apply a pair of heads to every token."""
        logits = class_head(described.features).float()
        return ProposedBoxes(logits, box_head(described.features).float() + described.anchors, described.anchors)

    def ranked(self, proposed: ProposedBoxes, count: int) -> Tensor:
        """Return the best tokens, best first, equal ones in order: int64 [B, min(count, S)]."""
        logits = proposed.logits
        score = logits[..., 0] if self.ranking == "foreground" else logits.amax(-1)
        return best_first(score, min(count, logits.shape[1]))[1]

    def queries(self, proposed: ProposedBoxes, selected: Tensor, table: nn.Embedding | None) -> InitialQueries:
        """Turn the boxes of chosen tokens [B, Q] into queries.

        Args:
            proposed: of all tokens.
            selected: int64 [B, Q].
            table: content of at least Q queries; None takes it from the boxes.
        """
        reference = proposed.references(selected)
        position, content = None, None
        if self.query_projection is not None and self.query_norm is not None:
            encoding = box_encoding(reference, self.projection.in_features // 2)
            position, content = self.query_norm(self.query_projection(encoding)).chunk(2, dim=-1)
        if table is not None:
            content = table.weight[: selected.shape[1]].expand(selected.shape[0], -1, -1)
        assert content is not None
        return InitialQueries(reference, content, position)

    def forward(self, proposed: ProposedBoxes) -> tuple[EncoderOutput, InitialQueries]:
        """Return proposals over all S tokens and the Q initial queries of each image.

        A batch with fewer than Q tokens gives as many queries as it has tokens.
        """
        selected = self.ranked(proposed, self.num_queries)
        return proposed.publish(selected), self.queries(proposed, selected, self.content)
