"""Evaluate a run, a checkpoint, an official file or a stripped file on the validation split of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lora_detr.atomic_files import prepare_directory, reporting
from lora_detr.config.run import DataConfig
from lora_detr.data.coco import CocoSplit, load_coco
from lora_detr.data.layout import COCO_FOLDER, find_splits
from lora_detr.errors import ConfigError, DataError
from lora_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics
from lora_detr.evaluation.deployed import DeploymentConfig
from lora_detr.evaluation.inference import collect
from lora_detr.models import TwoStageDetector
from lora_detr.structures import Images, Prediction
from lora_detr.training.data import eval_loader, read_splits
from lora_detr.training.distributed import World
from lora_detr.training.eval_results import write_results
from lora_detr.training.official_file import is_official
from lora_detr.training.opened import OpenedRun, open_run, open_stripped

# One is enough to keep a small detector busy, and more would take cores from it on a CPU.
WORKERS = 1


def evaluate_model(
    model: Path,
    *,
    say: Callable[[str], None],
    data: Path | None = None,
    which: Literal["best", "last"] = "best",
    branch: int | None = None,
    nms_iou: float | None = None,
    ema: bool = True,
    on_bad_data: Literal["error", "skip"] | None = None,
    predictions: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> CocoMetrics:
    """Evaluate and, for a run, write ``eval/`` in its folder; of several processes the first one writes.

    Args:
        model: run directory, checkpoint directory, official file or stripped file.
        say: told a line about what is evaluated.
        data: COCO folder or YAML; None for the run's own, or for ``data/coco`` where an official file has none.
        which: checkpoint of a run directory.
        branch: evaluate this branch of the last layer instead of the primary path.
        nms_iou: suppress duplicates above this overlap; what is one, the settings of the model say.
        ema: take the averaged weights where the checkpoint has them.
        on_bad_data: what to do with malformed boxes; None for the run's own choice, else ``error``.
        predictions: where to write COCO results besides the run's folder.
        batch_size: of a forward pass; None for the run's own, 1 for a stripped file.
        workers: processes that read images.
        device: where to compute.

    Raises:
        LoraDetrError: whatever the user can cause.
    """
    if predictions is not None:
        _check_place(predictions)
    world = World.from_environment(device)
    stripped = open_stripped(model)
    if stripped is not None:
        if branch is not None:
            raise ConfigError(f"--branch {branch}: {model} has no branches", "give the run directory it comes from")
        detector, config = stripped
        detector.to(world.device)
        run = None
        split = _val_split(data, config, _policy(DataConfig(), on_bad_data))
        size = batch_size or 1
        predict = _plain_predictor(detector)
    else:
        if data is None and is_official(model):
            data = _coco_folder(model)
            say(f"no --data: using {data}")
        run = open_run(model, which, ema=ema, data=data)
        run.model.to(world.device)
        predict = _predictor(run, branch)
        config = run.deployment
        policy = _policy(run.config.data, on_bad_data)
        split = _val_split(data, config, policy) if data is not None else _own_split(run, policy)
        size = batch_size or run.config.evaluation.batch_size
    source = "stripped file" if run is None else run.path.name
    averaged = ", averaged weights" if run is not None and run.averaged else ""
    say(f"{source}{averaged}: {len(split)} images of {split.annotations_path.name}")
    loader = eval_loader(split, config, world, batch_size=size, workers=WORKERS if workers is None else workers)
    # Only what the run itself would have measured is kept in its folder; a checkpoint elsewhere has none.
    plain = branch is None and nms_iou is None and data is None and on_bad_data is None
    folder = run.run / "eval" if run is not None and plain and _is_own(run) else None
    if folder is not None:
        prepare_directory(folder)  # before the evaluation, not after it
    evaluator = CocoEvaluator(split)
    collect(
        predict,
        loader,
        evaluator,
        world.device,
        max_detections=config.max_detections,
        min_score=config.min_score,
        nms_iou=nms_iou,
        suppression=config.suppression,
    )
    for rows in world.gather(evaluator.rows()):
        evaluator.add_rows(rows)
    metrics = evaluator.compute()
    if world.is_main:
        if folder is not None:
            write_results(folder, metrics, evaluator, source)
        if predictions is not None:
            with reporting(predictions):
                evaluator.write_predictions(predictions)
    world.barrier()  # processes that end well end together
    world.close()
    return metrics


def _check_place(predictions: Path) -> None:
    """Refuse a place that cannot be written before the evaluation, not after it."""
    if predictions.is_dir():
        raise ConfigError(f"--predictions {predictions}: is a folder", "give the name of a file")
    if not predictions.parent.is_dir():
        raise ConfigError(f"--predictions {predictions}: no such folder {predictions.parent}", "make it first")


def _coco_folder(model: Path) -> Path:
    if not COCO_FOLDER.is_dir():
        raise ConfigError(f"{model} names no data, and there is no {COCO_FOLDER}", "give --data DIR")
    return COCO_FOLDER


def _plain_predictor(detector: TwoStageDetector) -> Callable[[Images], Prediction]:
    def predict(images: Images) -> Prediction:
        return detector(images).prediction  # type: ignore[no-any-return]

    return predict


def _predictor(run: OpenedRun, branch: int | None) -> Callable[[Images], Prediction]:
    """Return the primary path's or a branch's answer; nothing of a branch is computed unless it is asked for."""
    count = len(run.model.branches)
    if branch is not None and branch >= count:
        raise ConfigError(
            f"--branch {branch}: the model has {count} branches, counted from 0",
            "leave --branch out to evaluate the primary path",
        )

    if branch is None:
        return _plain_predictor(run.model.detector)

    def predict(images: Images) -> Prediction:
        last = run.model(images)[1].layers[-1]
        return Prediction(last.logits[branch], last.boxes[branch])

    return predict


def _policy(config: DataConfig, on_bad_data: Literal["error", "skip"] | None) -> DataConfig:
    return config if on_bad_data is None else config.model_copy(update={"on_bad_data": on_bad_data})


def _own_split(run: OpenedRun, policy: DataConfig) -> CocoSplit:
    """Return the images that the run itself was evaluated on."""
    path = run.config.data.path
    if path is None:
        raise ConfigError("the run's config names no data", "give --data DIR")
    overfit = run.checkpoint.state.get("overfit")
    splits = read_splits(Path(path), policy, overfit if isinstance(overfit, int) else None)
    if splits.val is None:
        raise DataError(f"{path}: no validation split: {splits.missing} not found", "give --data DIR")
    return splits.val.with_categories(run.categories)


def _val_split(data: Path | None, config: DeploymentConfig, policy: DataConfig) -> CocoSplit:
    if data is None:
        raise ConfigError("a stripped file names no data", "give --data DIR")
    paths = find_splits(data)
    if paths.val_annotations is None or paths.val_images is None:
        raise DataError(
            f"{data}: no validation split: {paths.missing} not found",
            "add it, or name val_annotations and val_images in a YAML file",
        )
    split = load_coco(paths.val_annotations, paths.val_images, strict=policy.strict, on_bad_data=policy.on_bad_data)
    return split.with_categories(config.categories)


def _is_own(run: OpenedRun) -> bool:
    """Return whether a checkpoint lies in a run directory and its weights are those that the run evaluates."""
    return run.path.parent.name == "checkpoints" and (run.averaged or run.checkpoint.ema is None)
