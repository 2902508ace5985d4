"""Run a detector over a data set and collect COCO's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from lora_detr.errors import NumericalError
from lora_detr.evaluation.coco_eval import CocoEvaluator
from lora_detr.evaluation.postprocess import postprocess
from lora_detr.recipe.deployment import Suppression
from lora_detr.structures import Batch, Images, Prediction


@torch.no_grad()
def collect(
    predict: Callable[[Images], Prediction],
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
    device: torch.device,
    *,
    max_detections: int,
    min_score: float | None = None,
    nms_iou: float | None = None,
    suppression: Suppression = "per-class",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Add the detections of all batches to an evaluator.

    Args:
        predict: from padded images to logits [B, Q, K] and boxes [B, Q, 4].
        batches: images with their ids and stored sizes.
        evaluator: collects.
        device: of the detector.
        max_detections: kept of each image.
        min_score: what a detection must score more than; None for no limit.
        nms_iou: suppress duplicates above this overlap; None for none.
        suppression: whether only detections of one class are duplicates.
        progress: told the number of images after each batch.

    Raises:
        NumericalError: a prediction is not finite; names the images. Counted, it would match any object.
    """
    for batch in batches:
        prediction = predict(batch.images.to(device))
        _check_finite(prediction, batch)
        sizes = torch.tensor([target.original_size for target in batch.targets], device=prediction.boxes.device)
        found = postprocess(
            prediction,
            sizes,
            max_detections=max_detections,
            nms_iou=nms_iou,
            suppression=suppression,
            min_score=min_score,
        )
        for target, detections in zip(batch.targets, found, strict=True):
            evaluator.add(target.image_id, detections)
        if progress is not None:
            progress(len(batch.targets))


def _check_finite(prediction: Prediction, batch: Batch) -> None:
    finite = torch.stack([prediction.logits.isfinite().all(2).all(1), prediction.boxes.isfinite().all(2).all(1)]).all(0)
    wrong = [target.image_id for target, good in zip(batch.targets, finite.tolist(), strict=True) if not good]
    if wrong:
        raise NumericalError(
            f"the prediction is not finite for image {', '.join(map(str, wrong))}",
            "the weights may be damaged or untrained; evaluate another checkpoint",
            code="N01",
        )
