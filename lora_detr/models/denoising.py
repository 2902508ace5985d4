"""Denoising queries: noised targets that the decoder must restore (DN-DETR; contrastive as in DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import box_convert

from lora_detr.config.base import Strict
from lora_detr.ops.boxes import cxcywh_to_xyxy
from lora_detr.ops.positional import inverse_sigmoid
from lora_detr.structures import Assignment, Target

# Of one group: self-attention compares each query with each, so that more would fit no memory.
MAX_QUERIES = 100_000


class DenoisingConfig(Strict):
    """Noised copies of the targets as further queries, in pairs: one to restore, one to reject."""

    num_queries: int = Field(100, ge=1, le=MAX_QUERIES)
    """About how many positive queries an image gets; decides the number of groups."""
    label_noise: float = Field(0.5, ge=0, le=1)
    """Twice the probability that a label is replaced by a random one."""
    box_noise: float = Field(1.0, ge=0)
    """How far a corner moves at most, in half sides of the box; for a negative twice as far."""
    max_targets: int = Field(500, ge=1, le=MAX_QUERIES)
    """Of an image with more targets only the first so many are noised: memory grows with their square."""


@dataclass(frozen=True)
class Noise:
    """All random draws for n noised copies, in the order in which they are drawn.

    Attributes:
        label: [n], uniform in [0, 1); decides which labels are replaced.
        label_class: int64 [n], by which.
        sign: [n, 4], 0 or 1; direction in which each corner coordinate moves.
        distance: [n, 4], uniform in [0, 1); how far.
    """

    label: Tensor
    label_class: Tensor
    sign: Tensor
    distance: Tensor


def draw_noise(count: int, num_classes: int, device: torch.device) -> Noise:
    """Draw the noise of ``count`` copies from PyTorch's global generator."""
    label = torch.rand(count, device=device)
    label_class = torch.randint(0, num_classes, (count,), device=device)
    sign = torch.randint(0, 2, (count, 4), device=device, dtype=torch.float32)
    return Noise(label, label_class, sign, torch.rand((count, 4), device=device))


@dataclass(frozen=True)
class DenoisingBatch:
    """Queries of a batch, in groups of ``slots`` an image.

    Attributes:
        content: [B, P, D]; zero in slots without target.
        box_logits: [B, P, 4]; zero likewise.
        reference: [B, P, 4] = sigmoid of the logits.
        mask: bool [P + Q, P + Q], true where a query (row) may not attend to another (column).
        pairs: positives, [1, B, T, groups].
        groups: number of groups.
    """

    content: Tensor
    box_logits: Tensor
    mask: Tensor
    pairs: Assignment
    groups: int

    @property
    def reference(self) -> Tensor:
        """Noised boxes [B, P, 4]; (0.5, 0.5, 0.5, 0.5) in slots without target."""
        return self.box_logits.sigmoid()


class DenoisingQueries(nn.Module):
    """Make queries of noised targets.

    A group holds, for each of the largest number T of targets in an image, a positive slot, then as many negative
    ones. A batch without any object gives no query.

    Args:
        hidden_dim: D.
        num_classes: K.
        num_queries: see ``DenoisingConfig``.
        label_noise: likewise.
        box_noise: likewise.
        max_targets: likewise.
        eps: of the inverse sigmoid of boxes.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_classes: int,
        num_queries: int,
        label_noise: float,
        box_noise: float,
        max_targets: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.labels = nn.Embedding(num_classes, hidden_dim)
        self.num_queries, self.max_targets = num_queries, max_targets
        self.label_noise, self.box_noise, self.eps = label_noise, box_noise, eps

    def forward(self, targets: Sequence[Target], num_primary: int, noise: Noise | None = None) -> DenoisingBatch:
        """Return the queries of a batch.

        Args:
            targets: of the batch, on the device of the model.
            num_primary: Q, behind which the mask leaves room.
            noise: of all copies, in place of a draw.
        """
        width = max((len(target.labels) for target in targets), default=0)
        counts = [min(len(target.labels), self.max_targets) for target in targets]
        most = max(counts, default=0)
        groups = max(1, self.num_queries * most // max(most * most, 1))
        copies, slots = 2 * groups, 2 * most
        device = self.labels.weight.device
        if noise is None:
            noise = draw_noise(sum(counts) * copies, self.labels.num_embeddings, device)
        classes = torch.cat([target.labels[: self.max_targets] for target in targets]).repeat(copies)
        boxes = torch.cat([target.boxes[: self.max_targets] for target in targets]).repeat(copies, 1)
        second = torch.arange(copies, device=device).repeat_interleave(sum(counts)) % 2  # 1 at negatives
        content = self.labels(torch.where(noise.label < self.label_noise / 2, noise.label_class, classes))
        moved = self._moved(boxes, noise, second[:, None])
        place = _places(counts, groups, most).to(device)  # [n] into B * P
        shape = (len(counts), groups * slots)
        return DenoisingBatch(
            _spread(content, place, shape),
            _spread(moved, place, shape),
            _mask(groups, slots, num_primary, device),
            _pairs(counts, groups, slots, width, device),
            groups,
        )

    def _moved(self, boxes: Tensor, noise: Noise, second: Tensor) -> Tensor:
        """Return noised boxes [n, 4] as logits."""
        half = boxes[:, 2:].repeat(1, 2) / 2
        moved = cxcywh_to_xyxy(boxes) + (2 * noise.sign - 1) * (noise.distance + second) * half * self.box_noise
        return inverse_sigmoid(box_convert(moved.clamp(0, 1), "xyxy", "cxcywh"), self.eps)


def _spread(rows: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
    """Put rows [n, C] into zeros [B, P, C]."""
    empty = rows.new_zeros((shape[0] * shape[1], rows.shape[-1]))
    return empty.index_copy(0, place, rows).view(*shape, rows.shape[-1])


def _places(counts: Sequence[int], groups: int, most: int) -> Tensor:
    """Return where each copy goes in the flattened [B, groups * 2 * most] slots, copy by copy over the whole batch."""
    image = torch.tensor([b for b, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    target = torch.tensor([t for count in counts for t in range(count)], dtype=torch.int64)
    copy = torch.arange(2 * groups)[:, None]  # positive and negative copy of each group in turn
    return ((image * 2 * groups + copy) * most + target).flatten()


def _mask(groups: int, slots: int, num_primary: int, device: torch.device) -> Tensor:
    """Block what would give answers away: primary queries see no noised one, a group sees no other group."""
    group = torch.arange(groups, device=device).repeat_interleave(slots)
    group = torch.cat((group, group.new_full((num_primary,), -1)))
    noised = group >= 0
    return noised[None, :] & (group[:, None] != group[None, :])


def _pairs(counts: Sequence[int], groups: int, slots: int, width: int, device: torch.device) -> Assignment:
    """Pair noised target t of an image with positive slot t of every group, [1, B, T, groups]."""
    width, last = max(width, 1), max(slots // 2, 1) - 1
    query = torch.arange(width).clamp(max=last)[:, None] + torch.arange(groups) * slots  # [T, groups]
    query = query.expand(1, len(counts), -1, -1).to(device)
    known = torch.arange(width) < torch.tensor(counts)[:, None]  # [B, T]
    mask = known[None, :, :, None].expand(-1, -1, -1, groups).to(device)
    return Assignment(query, torch.zeros_like(query, dtype=torch.float32), mask)
