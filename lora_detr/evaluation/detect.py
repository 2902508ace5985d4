"""Run a detector over a data set and collect COCO's numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lora_detr.checkpoints.exported.session import ExportedDetector
from lora_detr.data.coco.checks import OnBadData
from lora_detr.data.coco.report import SHOWN_PROBLEMS
from lora_detr.data.coco.split import CocoSplit
from lora_detr.errors import NumericalError, counted
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoEvaluator
from lora_detr.evaluation.postprocess import selections
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import eval_loader
from lora_detr.recipe.preparation import Preparation, Suppression
from lora_detr.structures import Batch, Detections, Images, Prediction

if TYPE_CHECKING:  # what runs an exported file can build no detector, and imports none
    from lora_detr.models import AnyDetector

LEFT_OUT = ("image cannot be read and was left out", "images cannot be read and were left out")


@torch.no_grad()
def collect(
    predict: Callable[[Images], Prediction] | ExportedDetector,
    batches: Iterable[Batch],
    evaluators: Mapping[float | None, CocoEvaluator],
    device: torch.device,
    *,
    max_detections: int,
    min_score: float | None = None,
    suppression: Suppression = "per-class",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Add the detections of all batches to evaluators, each of which has a suppression of its own.

    Args:
        predict: from padded images to logits [B, Q, K] and boxes [B, Q, 4], or an exported file.
        batches: images with their ids and stored sizes.
        evaluators: by the overlap above which duplicates are suppressed, or None for no suppression.
        device: of the detector.
        max_detections: kept of each image.
        min_score: what a detection must score more than; None for no limit.
        suppression: whether only detections of one class are duplicates.
        progress: told the number of images after each batch.

    Raises:
        NumericalError: a prediction is not finite; names the images. Counted, it would match any object.
    """
    for batch in batches:
        given: Prediction | list[Detections]
        if isinstance(predict, ExportedDetector):
            given, place = predict(batch), torch.device("cpu")
        else:
            given = predict(batch.images.to(device))
            place = given.boxes.device
        _check_finite(given, batch)
        sizes = torch.tensor([target.original_size for target in batch.targets], device=place)
        for nms_iou, evaluator in evaluators.items():
            found = selections(
                given,
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


def _check_finite(given: Prediction | Sequence[Detections], batch: Batch) -> None:
    if isinstance(given, Prediction):
        parts = given.logits, given.boxes
        finite = torch.stack([part.isfinite().all(2).all(1) for part in parts]).all(0).tolist()
    else:
        finite = [bool(found.scores.isfinite().all() and found.boxes_xyxy_pixels.isfinite().all()) for found in given]
    wrong = [target.image_id for target, good in zip(batch.targets, finite, strict=True) if not good]
    if wrong:
        raise NumericalError(
            f"the prediction is not finite for image {', '.join(map(str, wrong))}",
            "the weights may be damaged or untrained; evaluate another checkpoint",
            code="N01",
        )


def detect_all(
    predict: Callable[[Images], Prediction] | ExportedDetector,
    split: CocoSplit,
    config: Preparation,
    world: World,
    *,
    batch_size: int,
    workers: int,
    nms_ious: Sequence[float | None] = (None, SUPPRESSION_IOU),
    on_bad_data: OnBadData = "error",
    after_batch: Callable[[], None] | None = None,
) -> dict[float | None, CocoEvaluator]:
    """Detect on a split, each image once, and bring the detections of all processes together.

    Which images are padded together depends on ``batch_size`` alone, so the result is the same for any number of
    processes, bit for bit.

    Args:
        predict: from padded images to logits [B, Q, K] and boxes [B, Q, 4], or an exported file.
        split: images; ground truth for what follows.
        config: how images are prepared, and what is kept of an image.
        world: ranks and device.
        batch_size: images of a forward pass.
        workers: processes that read images; they have ended on return.
        nms_ious: overlaps above which duplicates are suppressed, None for no suppression; one forward pass serves all.
        on_bad_data: ``skip`` leaves out images that cannot be read; they are in ``left_out`` of the evaluators.
        after_batch: called as often on every process, so that it may reach an agreement.

    Returns:
        For each suppression an evaluator that holds the detections of all images, on every process.

    Raises:
        NumericalError: a prediction is not finite.
        DataError: an image cannot be used, or with ``skip`` none can.
        WorkerError: a reader died, or gave nothing for too long.
    """
    loader = eval_loader(split, config, world, batch_size=batch_size, workers=workers, on_bad_data=on_bad_data)
    evaluators = {nms_iou: CocoEvaluator(split) for nms_iou in nms_ious}
    with contextlib.closing(loader):
        collect(
            predict,
            loader,
            evaluators,
            world.device,
            max_detections=config.max_detections,
            min_score=config.min_score,
            suppression=config.suppression,
            progress=None if after_batch is None else lambda images: after_batch(),
        )
    if after_batch is not None:
        for _ in range(loader.sampler.batches_per_epoch - len(loader)):  # a batch less than others have
            after_batch()
    unreadable = world.gather(loader.unreadable) if on_bad_data == "skip" else []
    for evaluator in evaluators.values():
        for rows in world.gather(evaluator.rows()):
            evaluator.add_rows(rows)
        for problems in unreadable:
            evaluator.leave_out(problems)
    return evaluators


def left_out_lines(evaluator: CocoEvaluator) -> list[str]:
    """Return a line for each of the first images that were left out, and one that counts them."""
    problems = list(evaluator.left_out.values())
    if not problems:
        return []
    named = [f"left out: {problem.text}" for problem in problems[:SHOWN_PROBLEMS]]
    return [*named, counted(len(problems), *LEFT_OUT)]


def plain_predictor(detector: AnyDetector) -> Callable[[Images], Prediction]:
    """Return a detector's primary path as a function of images."""

    def predict(images: Images) -> Prediction:
        return detector(images).prediction  # type: ignore[no-any-return]

    return predict
