"""From class logits and relative boxes to the best detections of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert, nms

from lora_detr.recipe.preparation import Suppression
from lora_detr.structures import Detections, Prediction

NMS_CANDIDATES = 10_000
"""(query, class) entries of an image that enter suppression by class, as in the official code."""


@torch.no_grad()
def postprocess(
    prediction: Prediction,
    original_sizes: Tensor,
    *,
    max_detections: int,
    nms_iou: float | None = None,
    suppression: Suppression = "per-class",
    min_score: float | None = None,
) -> list[Detections]:
    """Return the best detections of each image, best first.

    A detection is a (query, class) entry, so a query may be kept with several classes. Equal scores are ordered by
    (query, class). Boxes are not clipped to the image, as in the official code.

    Suppression by class fills the places of what it drops from a long list of candidates, as the Deformable family
    does; that of any class only thins out the ``max_detections`` best, as the Relation family does.

    Args:
        prediction: logits [B, Q, K]; boxes [B, Q, 4], cxcywh relative to the unpadded image.
        original_sizes: [B, 2], (height, width) in pixels of the images as stored.
        max_detections: kept for each image; fewer if Q * K is smaller, or suppression or ``min_score`` leave fewer.
        nms_iou: suppress entries that overlap a better one by more than this; None for no suppression, as DETR is
            meant to be used.
        suppression: whether the better one must be of the same class.
        min_score: an entry must score more than this; None for no limit.

    Returns:
        B detections, on the device of the prediction; scores float32.

    Raises:
        ValueError: ``max_detections`` is below 1, or sizes and predictions are of different numbers of images.
    """
    images, _, classes = prediction.logits.shape
    if max_detections < 1 or tuple(original_sizes.shape) != (images, 2):
        raise ValueError(f"{max_detections=}; original_sizes {tuple(original_sizes.shape)}, expected ({images}, 2)")
    probabilities = prediction.logits.float().sigmoid().flatten(1)  # [B, Q * K]
    refilled = nms_iou is not None and suppression == "per-class"
    limit = min(NMS_CANDIDATES if refilled else max_detections, probabilities.shape[1])
    # A stable sort and not topk, which orders equal scores differently from device to device.
    scores, entries = (part[:, :limit] for part in probabilities.sort(dim=1, descending=True, stable=True))
    queries, labels = entries // classes, entries % classes  # [B, n]

    scale = original_sizes.to(prediction.boxes.device).flip(1).repeat(1, 2)  # [B, 4]: W, H, W, H
    corners = box_convert(prediction.boxes.float(), "cxcywh", "xyxy") * scale[:, None]  # [B, Q, 4]
    boxes = corners.gather(1, queries[..., None].expand(-1, -1, 4))  # [B, n, 4]

    found = [Detections(*parts) for parts in zip(boxes, scores, labels, queries, strict=True)]
    return [select(one, max_detections, nms_iou, suppression, min_score) for one in found]


def selections(
    given: Prediction | Sequence[Detections],
    original_sizes: Tensor,
    *,
    max_detections: int,
    nms_iou: float | None,
    suppression: Suppression,
    min_score: float | None,
) -> list[Detections]:
    """Return what ``postprocess`` does, also of the best detections of each image, without suppression so far.

    Of these, suppression leaves fewer: what would fill the places is not among them.
    """
    if isinstance(given, Prediction):
        return postprocess(
            given,
            original_sizes,
            max_detections=max_detections,
            nms_iou=nms_iou,
            suppression=suppression,
            min_score=min_score,
        )
    return [select(found, max_detections, nms_iou, suppression, min_score) for found in given]


def select(
    found: Detections, max_detections: int, nms_iou: float | None, suppression: Suppression, min_score: float | None
) -> Detections:
    """Return which candidates of an image are kept; arguments as for ``postprocess``, candidates best first."""
    if nms_iou is not None:
        kept = unsuppressed(found.boxes_xyxy_pixels, found.scores, found.labels, nms_iou, suppression)
        found = _entries(found, kept[:max_detections])
    if min_score is not None:
        found = _entries(found, found.scores > min_score)
    return found


def unsuppressed(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, suppression: Suppression) -> Tensor:
    """Return which detections of an image no better one suppresses, rising.

    Args:
        boxes: [n, 4], xyxy; n may be 0.
        scores: [n], falling.
        labels: [n].
        iou: overlap above which the better one suppresses the other.
        suppression: whether only detections of one class suppress each other.
    """
    if suppression == "any-class":
        kept: Tensor = nms(boxes, scores, iou)
    else:
        kept = batched_nms(boxes, scores, labels, iou)
    # Candidates are in order already; restoring it makes ties independent of how the suppression sorts.
    return kept.sort().values


def _entries(found: Detections, kept: Tensor) -> Detections:
    return Detections(found.boxes_xyxy_pixels[kept], found.scores[kept], found.labels[kept], found.queries[kept])
