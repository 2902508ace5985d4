"""Two-stage proposals: every memory token proposes a box, the best become initial references and queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_detr.models.heads import Heads
from lora_detr.models.neck import Tokens
from lora_detr.ops.positional import box_encoding
from lora_detr.structures import EncoderOutput, Prediction

# Side of the anchor on the finest level, relative to the image; each coarser level doubles it.
FINEST_ANCHOR = 0.05
# An anchor whose centre or size leaves this range proposes nothing.
ANCHOR_RANGE = (0.01, 0.99)


@dataclass(frozen=True)
class InitialQueries:
    """What the decoder starts from.

    Attributes:
        reference: [B, Q, 4], detached.
        content: [B, Q, D].
        position: [B, Q, D].
    """

    reference: Tensor
    content: Tensor
    position: Tensor


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
    """Score all tokens, keep the best, and turn their boxes into queries.

    Args:
        hidden_dim: D.
        num_queries: Q.
        mixed_selection: take the content of queries from a learned table (Deformable-DETR++) instead of from the
            proposal's box.
    """

    def __init__(self, hidden_dim: int, num_queries: int, mixed_selection: bool) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.projection = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.query_projection = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.query_norm = nn.LayerNorm(2 * hidden_dim)
        self.content = nn.Embedding(num_queries, hidden_dim) if mixed_selection else None

    def forward(self, memory: Tensor, tokens: Tokens, heads: Heads) -> tuple[EncoderOutput, InitialQueries]:
        """Return proposals over all S tokens and the Q initial queries of each image.

        Tokens are ranked by the logit of class 0 alone (the encoder's single foreground class). A batch with fewer
        than Q tokens gives as many queries as it has tokens.
        """
        anchors, usable = anchor_logits(tokens)
        features = self.norm(self.projection(memory.masked_fill(~usable[..., None], 0.0)))
        logits = heads.classes[-1](features).float()
        unrefined = heads.boxes[-1](features).float() + anchors
        count = min(self.num_queries, memory.shape[1])
        best = logits[..., 0].topk(count, dim=1).indices  # [B, Q]
        start = unrefined.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        reference = start.sigmoid()
        encoding = box_encoding(reference, memory.shape[-1] // 2)
        position, content = self.query_norm(self.query_projection(encoding)).chunk(2, dim=-1)
        if self.content is not None:
            content = self.content.weight[:count].expand(memory.shape[0], -1, -1)
        encoder = EncoderOutput(Prediction(logits, unrefined.sigmoid()), anchors.sigmoid())
        return encoder, InitialQueries(reference, content, position)
