"""Predict on overlapping tiles of a large photo and on the whole of it, and merge what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.ops import box_area

from lora_detr.data.tiles import windows
from lora_detr.evaluation.predictor import ImagePrediction, NmsChoice, read_source

if TYPE_CHECKING:
    from lora_detr.evaluation.predictor import ImageSource, Predictor

MERGED_IOU, CONTAINED = 0.5, 0.8
"""Of two objects of a class, the one of lower score is dropped if they overlap by this IoU, or if this share of the
smaller one lies in the other."""

# A box that ends so close to where its tile was cut off is a part of an object.
CUT = 2.0


def predict_tiled(
    predictor: Predictor, image: ImageSource, side: int, score: float | None, nms_iou: NmsChoice, batch_size: int
) -> ImagePrediction:
    """Find the objects of one image, small ones on its tiles and large ones on the whole.

    Objects that a tile cuts off are left to the next tile, which overlaps it by a fifth, or to the whole image.

    Args:
        predictor: of the model.
        image: see ``Predictor.predict``.
        side: of a tile in pixels of the image; an image that is no larger is predicted as ever.
        score: see ``Predictor.predict``.
        nms_iou: see ``Predictor.predict``; on each tile.
        batch_size: tiles of a forward pass.
    """
    pixels = read_source(image, predictor.config.max_pixels)
    height, width = pixels.shape[1:]
    places = windows(height, width, side)
    whole = replace(predictor.predict(pixels, score, nms_iou), source=image)
    if len(places) == 1:
        return whole
    tiles = (pixels[:, top : top + tall, left : left + wide] for top, left, tall, wide in places)
    parts = predictor.predict_many(tiles, score, nms_iou, batch_size=batch_size)
    boxes, scores, labels = [whole.boxes_xyxy_pixels], [whole.scores], [whole.labels]
    for (top, left, tall, wide), part in zip(places, parts, strict=True):
        own = part.boxes_xyxy_pixels
        start, end = own.new_tensor([left, top]), own.new_tensor([left + wide, top + tall])
        moved = own + start.repeat(2)
        inner = torch.cat((start > 0, end < own.new_tensor([width, height])))
        cut = torch.cat((own[:, :2] < CUT, own[:, 2:] > own.new_tensor([wide, tall]) - CUT), dim=1)
        kept = ~(cut & inner).any(dim=1)
        boxes.append(moved[kept])
        scores.append(part.scores[kept])
        labels.append(part.labels[kept])
    return _merged(whole, torch.cat(boxes), torch.cat(scores), torch.cat(labels), predictor)


def _merged(
    whole: ImagePrediction, boxes: Tensor, scores: Tensor, labels: Tensor, predictor: Predictor
) -> ImagePrediction:
    """Return what is left of all objects, best first."""
    order = scores.sort(descending=True, stable=True).indices
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for label in labels.unique().tolist():
        places = torch.nonzero(labels == label)[:, 0]
        kept[places[_distinct(boxes[places])]] = True
    found = labels[kept].tolist()
    return replace(
        whole,
        boxes_xyxy_pixels=boxes[kept],
        scores=scores[kept],
        labels=labels[kept],
        category_ids=tuple(predictor.config.category_ids[label] for label in found),
        names=tuple(predictor.classes[label] for label in found),
    )


def _distinct(boxes: Tensor) -> Sequence[int]:
    """Return the boxes [n, 4], best first, that show another object than every better one."""
    areas, chosen = box_area(boxes), list[int]()
    for i in range(len(boxes)):
        better = boxes[chosen]
        low, high = better[:, :2].maximum(boxes[i, :2]), better[:, 2:].minimum(boxes[i, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        overlap = shared / (areas[chosen] + areas[i] - shared)
        contained = shared / areas[chosen].minimum(areas[i])
        if not bool(((overlap > MERGED_IOU) | (contained > CONTAINED)).any()):
            chosen.append(i)
    return chosen
