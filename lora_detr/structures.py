"""The types that cross a module border, and the protocols.

Legend, used in every shape comment of the package: **B** images, **Q** queries, **S** flattened memory tokens,
**D** hidden size, **F** FFN size, **K** classes, **L** decoder layers, **N** branches, **T** targets of an image,
**G** groups of a stack (predictions that are matched side by side), **M** matched pairs, **r** rank.

Boxes are (cx, cy, w, h), relative to the *unpadded* image, in [0, 1], unless a name says ``xyxy`` or ``pixels``.
All types are frozen; nothing here depends on whether a module is training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from lora_detr.ops.boxes import Corners, corners


@dataclass(frozen=True)
class Images:
    """A padded batch of images.

    Attributes:
        pixels: [B, 3, H, W]; uint8 as read, or float and normalised; zero where padded.
        padding: bool [B, H, W], true where padded.
        sizes: int64 [B, 2], (height, width) before padding, in pixels.
    """

    pixels: Tensor
    padding: Tensor
    sizes: Tensor

    def to(self, device: torch.device) -> Images:
        """Return the same images on ``device``."""
        return Images(*(part.to(device, non_blocking=True) for part in (self.pixels, self.padding, self.sizes)))

    def count_padded(self) -> int:
        """Return how many pixels of the batch are padding; from ``sizes`` alone, so on the host no device is asked."""
        return self.padding.numel() - int(self.sizes.prod(dim=1).sum())

    def pin_memory(self) -> Images:
        """Return the same images in page-locked memory (called by ``DataLoader``)."""
        return Images(self.pixels.pin_memory(), self.padding.pin_memory(), self.sizes.pin_memory())


@dataclass(frozen=True)
class Target:
    """The objects of one image.

    Attributes:
        boxes: float [T, 4]; T may be 0.
        labels: int64 [T], contiguous 0..K-1.
        image_id: id in the annotation file.
        original_size: (height, width) of the image as stored, in pixels.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int
    original_size: tuple[int, int]

    def to(self, device: torch.device) -> Target:
        """Return the same target on ``device``."""
        boxes, labels = (part.to(device, non_blocking=True) for part in (self.boxes, self.labels))
        return replace(self, boxes=boxes, labels=labels)

    def pin_memory(self) -> Target:
        """Return the same target in page-locked memory (called by ``DataLoader``)."""
        return replace(self, boxes=self.boxes.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Batch:
    """Images with one target each."""

    images: Images
    targets: tuple[Target, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on ``device``."""
        return Batch(self.images.to(device), tuple(target.to(device) for target in self.targets))

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory (called by ``DataLoader``)."""
        return Batch(self.images.pin_memory(), tuple(target.pin_memory() for target in self.targets))


@dataclass(frozen=True)
class PaddedTargets:
    """The targets of a batch in rectangular tensors, so that matching needs no loop over images.

    Attributes:
        boxes: float [B, T, 4]; zero where padded.
        labels: int64 [B, T]; zero where padded.
        mask: bool [B, T], true at real targets.
        counts: number of real targets of each image, known on the host without a copy.
    """

    boxes: Tensor
    labels: Tensor
    mask: Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_targets(cls, targets: Sequence[Target]) -> PaddedTargets:
        """Pad ``targets`` to the largest number of objects; without any, to one masked slot, so no shape is empty."""
        counts = tuple(len(target.labels) for target in targets)
        width, first = max((*counts, 1)), targets[0].boxes
        boxes = first.new_zeros((len(targets), width, 4))
        labels = torch.zeros((len(targets), width), dtype=torch.int64, device=first.device)
        for i, target in enumerate(targets):
            boxes[i, : counts[i]] = target.boxes
            labels[i, : counts[i]] = target.labels
        mask = torch.arange(width) < torch.tensor(counts)[:, None]  # [B, T]
        # Made on the host: a tensor of numbers made on a GPU waits for all that was asked of it before.
        return cls(boxes, labels, mask.to(first.device, non_blocking=True), counts)

    @cached_property
    def corners(self) -> Corners:
        """The boxes as corners [B, T, 1], to be compared with predictions [..., B, 1, Q]; computed once a step."""
        return corners(self.boxes).unsqueeze(-1)

    def with_single_class(self) -> PaddedTargets:
        """Return the same targets with every label 0 (encoder loss of the Deformable family)."""
        return replace(self, labels=torch.zeros_like(self.labels))


@dataclass(frozen=True)
class Prediction:
    """What class and box heads give.

    Attributes:
        logits: float [..., Q, K], sigmoid not applied.
        boxes: float [..., Q, 4].
        reference: [..., Q, 4], the boxes that those refine, where a matcher has ``reads_references``; None for points.
        overlap: float32 [..., T, Q], IoU of each target and box, where several matchers share it; else None.
    """

    logits: Tensor
    boxes: Tensor
    reference: Tensor | None = None
    overlap: Tensor | None = None


@dataclass(frozen=True)
class DecoderLayerOutput:
    """Everything a decoder layer publishes, always, for whoever reads it.

    Attributes:
        cross_output: [B, Q, D] after cross-attention and its norm.
        ffn_input: [B, Q, D], what the feed-forward network was given.
        ffn_hidden: [B, Q, F] = W1 x + b1, before the activation.
        hidden: [B, Q, D], what the layer hands on.
        reference: [B, Q, 4], as the box head used it; [B, Q, R] in ``models/huggingface``.
        prediction: of the primary path.
    """

    cross_output: Tensor
    ffn_input: Tensor
    ffn_hidden: Tensor
    hidden: Tensor
    reference: Tensor
    prediction: Prediction


@dataclass(frozen=True)
class EncoderOutput:
    """Proposals of the first stage.

    Attributes:
        prediction: over all S tokens.
        anchors: [B, S, 4]; (1, 1, 1, 1) at padded or invalid tokens.
        selected: int64 [B, Q], the tokens that became queries, best first; None where nobody will ask.
    """

    prediction: Prediction
    anchors: Tensor
    selected: Tensor | None = None


@dataclass(frozen=True)
class QueryGroupOutput:
    """Predictions of queries that exist in training only, supervised apart from the primary ones.

    Attributes:
        name: ``denoising``, ``hybrid`` or ``dac``; the criterion has settings for each.
        layers: L predictions [B, P, ...] of its P queries; P may be 0.
        encoder: proposals of its own, or None.
        pairs: which query is trained on which target where that is known beforehand, [1, B, T, k]; else None.
        copies: how often each target stands in ``pairs``.
    """

    name: str
    layers: tuple[Prediction, ...]
    encoder: EncoderOutput | None = None
    pairs: Assignment | None = None
    copies: int = 1


class OwnTerm(NamedTuple):
    """A term of a detector's own loss by its place (``losses.report.LossKey``); ``value`` is before weighting."""

    source: str
    layer: int | None
    kind: str
    value: Tensor
    weight: float


class OwnLoss(NamedTuple):
    """What a detector's own loss makes of a batch: a scalar with gradient, the weighted sum of the terms."""

    total: Tensor
    terms: tuple[OwnTerm, ...]


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector returns, in training and in evaluation alike.

    Attributes:
        layers: L outputs of the primary queries, first layer first.
        encoder: proposals, or None for a one-stage detector.
        initial_reference: [B, Q, 4] that the first layer started from.
        memory: [B, S, D] of the encoder; S is 0 where a model keeps it to itself.
        groups: queries beside the primary ones; empty in evaluation.
        own_loss: computes all but the branches' losses, of a detector that brings its own, in training; else None.
    """

    layers: tuple[DecoderLayerOutput, ...]
    encoder: EncoderOutput | None
    initial_reference: Tensor
    memory: Tensor
    groups: tuple[QueryGroupOutput, ...] = ()
    own_loss: Callable[[], OwnLoss] | None = None

    @property
    def prediction(self) -> Prediction:
        """The last layer's prediction: the detector's answer."""
        return self.layers[-1].prediction


ClassLayer = Literal["shared", "detached", "own", "each"]  # of branches, see ``BranchLossConfig.class_layer``


@dataclass(frozen=True)
class BranchOutput:
    """Predictions of all branches.

    Attributes:
        layers: L predictions with a leading branch axis: logits [N, B, Q, K], boxes [N, B, Q, 4].
        hidden: L tensors [N, B, Q, D] from which they were made.
    """

    layers: tuple[Prediction, ...]
    hidden: tuple[Tensor, ...]


@dataclass(frozen=True)
class Assignment:
    """Query-target pairs of a stack, in a fixed shape so that no shape depends on data.

    Attributes:
        query: int64 [G, B, T, k]; any valid index where masked.
        score: float [G, B, T, k], decides conflicts: the score M (Eq. 7), minus the cost, or 0 for pairs known before.
        mask: bool [G, B, T, k], true where the pair counts.
        ignored: bool [G, B, Q], queries that are neither paired nor background, and have no loss; None without any.
    """

    query: Tensor
    score: Tensor
    mask: Tensor
    ignored: Tensor | None = None

    def pairs(self, group: int, image: int) -> list[tuple[int, int]]:
        """Return the (query, target) pairs of one group and image, sorted. Copies to the host; for tests and tools."""
        target, slot = self.mask[group, image].nonzero(as_tuple=True)
        query = self.query[group, image][target, slot]
        return sorted(zip(query.tolist(), target.tolist(), strict=True))


@dataclass(frozen=True)
class Detections:
    """Boxes found in one image, best first.

    Attributes:
        boxes_xyxy_pixels: float [n, 4] in the stored image's pixels.
        scores: float [n] in [0, 1].
        labels: int64 [n], 0..K-1.
        queries: int64 [n], which query each came from.
    """

    boxes_xyxy_pixels: Tensor
    scores: Tensor
    labels: Tensor
    queries: Tensor


@runtime_checkable
class Backbone(Protocol):
    """Maps pixels [B, 3, H, W] to feature maps, finest first.

    Attributes:
        channels: channels C_i of each map.
        strides: s_i, so that map i is [B, C_i, ceil(H / s_i), ceil(W / s_i)].
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]: ...


class FeedForwardLike(Protocol):
    """The part of a feed-forward block that a branch reads (see ``models.layers.ffn.FeedForward``)."""

    linear1: nn.Linear
    linear2: nn.Linear
    norm: nn.LayerNorm

    def finish(self, inputs: Tensor, projected: Tensor) -> Tensor: ...

    def activate(self, hidden: Tensor) -> Tensor: ...


@runtime_checkable
class Detector(Protocol):
    """A detector that publishes its decoder layers."""

    num_classes: int

    def ffn(self, layer: int) -> FeedForwardLike: ...

    def class_layer(self, layer: int) -> nn.Linear: ...

    def predict(
        self, layer: int, hidden: Tensor, reference: Tensor, classes: Callable[[Tensor], Tensor] | None = None
    ) -> Prediction: ...

    def __call__(self, images: Images, targets: Sequence[Target] | None = None) -> DetectorOutput: ...


@runtime_checkable
class Matcher(Protocol):
    """Maps a stack of predictions and padded targets to an ``Assignment``; no gradient, no state."""

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment: ...


@runtime_checkable
class ScoredMatcher(Matcher, Protocol):
    """A matcher that scores every pair, so that pairs found elsewhere can be merged with its own."""

    def score(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        """Return the score of every pair, [G, B, T, Q]; any value at padded targets."""


@runtime_checkable
class RankingMatcher(ScoredMatcher, Protocol):
    """A matcher that needs no more than its scores to pair, so that they are computed once."""

    def match(self, score: Tensor, mask: Tensor, priority: Tensor | None = None) -> Assignment:
        """Match by scores; ``mask`` [B, T] is true at real targets, ``priority`` [G, B, Q] replaces random draws."""


@runtime_checkable
class StackableMatcher(ScoredMatcher, Protocol):
    """A matcher that can handle several branches in one call, each with settings of its own."""

    @property
    def options(self) -> tuple[object, ...]:
        """What matchers of this class must share to run as one."""

    def stacked(self, members: Sequence[Self], groups_each: int) -> Self:
        """Return one matcher for a stack in which each member has ``groups_each`` consecutive groups."""


class Branch(Protocol):
    """An auxiliary path beside a decoder layer's feed-forward network; an ``nn.Module``.

    Attributes:
        follows_reference: its boxes train the reference they refine, as far as the primary's do; else it is detached.
    """

    follows_reference: bool

    def __call__(self, layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput) -> Tensor: ...

    def forward_stack(
        self, branches: Sequence[Self], layer: int, ffn: FeedForwardLike, output: DecoderLayerOutput
    ) -> Tensor:
        """Return the hidden states of several branches of this class, [N, B, Q, D]."""

    def merge_into(self, layer: int, ffn: FeedForwardLike) -> None:
        """Change a feed-forward network in place so that it computes this branch."""
