"""Evaluate a run, a checkpoint, an official file or a stripped file on the validation split of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_detr.atomic_files import prepare_directory
from lora_detr.checkpoints.checkpoint import run_of
from lora_detr.checkpoints.opened import OpenedRun, kind_of, open_model
from lora_detr.checkpoints.stripped_file import StrippedFile
from lora_detr.data.coco.layout import COCO_FOLDER
from lora_detr.data.coco.source import AUTO
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.layouts.registry import format_named
from lora_detr.errors import ConfigError, DataError, counted
from lora_detr.evaluation.coco_eval import SUPPRESSION_IOU, CocoEvaluator, CocoMetrics
from lora_detr.evaluation.detect import detect_all, left_out_lines, plain_predictor
from lora_detr.evaluation.operating_point import measure
from lora_detr.processes.world import World
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.loaders import policy_of, read_splits
from lora_detr.recipe.run_config import DataConfig
from lora_detr.records.eval_results import write_results
from lora_detr.runs.validation import WORKERS, check_outputs, val_split, write_outputs
from lora_detr.structures import Images, Prediction

PRIMARY = "primary"
"""Name of the primary path among the parts."""


class NoValidationError(DataError):
    """Data of a run that has no validation split."""


@dataclass(frozen=True)
class Prepared:
    """A model, and the images that it is evaluated on.

    Attributes:
        opened: what was opened; on the device.
        split: with the labels of the model.
        policy: what to do with bad data.
        world: ranks and device.
    """

    opened: OpenedRun | StrippedFile
    split: CocoSplit
    policy: DataConfig
    world: World

    @property
    def config(self) -> DeploymentConfig:
        """How images are prepared, and what is kept of an image."""
        return self.opened.deployment

    @property
    def run(self) -> OpenedRun | None:
        """The opened run; None for a stripped file."""
        return self.opened if isinstance(self.opened, OpenedRun) else None

    @property
    def source(self) -> str:
        """Name of what is evaluated."""
        return "stripped file" if self.run is None else self.run.path.name

    @property
    def batch_size(self) -> int:
        """Images of a forward pass unless a caller says otherwise: the run's, or one."""
        return 1 if self.run is None else self.run.config.evaluation.batch_size

    def describe(self) -> str:
        """Return a line about what is evaluated on what."""
        averaged = ", averaged weights" if self.run is not None and self.run.averaged else ""
        return f"{self.source}{averaged}: {counted(len(self.split), 'image')} of {self.split.report.file}"

    def detect(
        self,
        predict: Callable[[Images], Prediction],
        nms_ious: tuple[float | None, ...] = (None, SUPPRESSION_IOU),
        *,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> dict[float | None, CocoEvaluator]:
        """Detect on all images; see ``detect_all``."""
        return detect_all(
            predict,
            self.split,
            self.config,
            self.world,
            batch_size=batch_size or self.batch_size,
            workers=WORKERS if workers is None else workers,
            nms_ious=nms_ious,
            on_bad_data=self.policy.on_bad_data,
        )


def prepare(
    model: Path,
    *,
    say: Callable[[str], None],
    data: Path | None = None,
    data_format: str | None = None,
    which: Literal["best", "last"] = "best",
    ema: bool = True,
    part: int | Literal["all"] | None = None,
    on_bad_data: Literal["error", "skip"] | None = None,
    allow_outside: bool = False,
    device: str = "auto",
) -> Prepared:
    """Open a model and the validation split of its data; arguments as of ``evaluate_parts``.

    Raises:
        NoValidationError: the data of the run has no validation split.
        LoraDetrError: whatever else the user can cause.
    """
    if data_format is not None and data is None:
        raise ConfigError("--data-format needs --data", "add --data PATH")
    other = {} if data is None else {"format": format_named(data_format or AUTO)}
    world = World.from_environment(device)
    if data is None and kind_of(model) == "official":
        data = _coco_folder(model)
        say(f"no --data: using {data}")
    opened = open_model(model, which, ema=ema, data=data)
    if isinstance(opened, OpenedRun):
        opened.model.to(world.device)
        policy = _policy(opened.config.data, on_bad_data, allow_outside, other)
        if data is None:
            split = _own_split(opened, policy)
        else:
            split = val_split(data, opened.deployment.categories, policy_of(policy), policy.read_as, "the run")
    else:
        if part is not None:
            raise ConfigError(f"--branch {part}: {model} has no branches", "give the run directory it comes from")
        opened.detector.to(world.device)
        policy = _policy(DataConfig(), on_bad_data, allow_outside, other)
        split = val_split(data, opened.deployment.categories, policy_of(policy), policy.read_as, "a stripped file")
    return Prepared(opened, split, policy, world)


def evaluate_parts(
    model: Path,
    *,
    say: Callable[[str], None],
    data: Path | None = None,
    data_format: str | None = None,
    which: Literal["best", "last"] = "best",
    part: int | Literal["all"] | None = None,
    nms_iou: float | None = None,
    ema: bool = True,
    on_bad_data: Literal["error", "skip"] | None = None,
    allow_outside: bool = False,
    predictions: Path | None = None,
    confusion: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> dict[str, CocoMetrics]:
    """Evaluate and, for a run, write ``eval/`` in its folder; of several processes the first one writes.

    Args:
        model: run directory, checkpoint directory, official file or stripped file.
        say: told a line about what is evaluated.
        data: data set; None for the run's own, or for ``data/coco`` where an official file has none.
        data_format: layout of ``data``; None recognises it.
        which: checkpoint of a run directory.
        part: evaluate this branch of the last layer instead of the primary path; ``all`` for both and all branches.
        nms_iou: suppress duplicates above this overlap; what is one, the settings of the model say.
        ema: take the averaged weights where the checkpoint has them.
        on_bad_data: what to do with malformed boxes and unreadable images; None for the run's choice, else ``error``.
        allow_outside: file names may lead out of the image folder, whatever the run allows.
        predictions: where to write COCO results besides the run's folder.
        confusion: where to write confusion matrix and kinds of errors at the operating point, as JSON or CSV.
        batch_size: of a forward pass; None for the run's own, 1 for a stripped file.
        workers: processes that read images.
        device: where to compute.

    Returns:
        ``primary`` or the name of a branch -> what it gave.

    Raises:
        LoraDetrError: whatever the user can cause.
    """
    if part == "all":
        for option, path in (("--predictions", predictions), ("--confusion", confusion)):
            if path is not None:
                raise ConfigError(f"{option}: one file cannot hold what all parts find", "give one --branch")
    check_outputs(predictions, confusion, nms_iou)
    prepared = prepare(
        model,
        say=say,
        data=data,
        data_format=data_format,
        which=which,
        ema=ema,
        part=part,
        on_bad_data=on_bad_data,
        allow_outside=allow_outside,
        device=device,
    )
    run, config, world = prepared.run, prepared.config, prepared.world
    if run is not None:
        predictors = _predictors(run, part)
    else:
        predictors = {PRIMARY: plain_predictor(prepared.opened.detector)}
    say(prepared.describe())
    # Only what the run itself would have measured is kept in its folder; a checkpoint elsewhere has none.
    plain = nms_iou is None and data is None and on_bad_data is None and PRIMARY in predictors
    folder = run.run / "eval" if run is not None and plain and _is_own(run) else None
    if folder is not None:
        prepare_directory(folder)  # before the evaluation, not after it
    found: dict[str, CocoMetrics] = {}
    for name, predict in predictors.items():
        nms_ious = (None, SUPPRESSION_IOU) if nms_iou is None else (nms_iou,)
        evaluators = prepared.detect(predict, nms_ious, batch_size=batch_size, workers=workers)
        evaluator = evaluators[nms_iou]
        metrics = None
        if world.is_main:
            for line in left_out_lines(evaluator) if not found else ():
                say(line)
            metrics = measure(evaluators, config) if nms_iou is None else evaluator.compute()
            if folder is not None and name == PRIMARY:
                write_results(folder, metrics, evaluator, prepared.source)
            write_outputs(evaluator, metrics, config, predictions, confusion)
        # All wait for the first one here: processes that end well end together.
        metrics = world.gather(metrics)[0]
        assert metrics is not None
        found[name] = metrics
    world.close()
    return found


def _coco_folder(model: Path) -> Path:
    if not COCO_FOLDER.is_dir():
        raise ConfigError(f"{model} records no data path, and there is no {COCO_FOLDER}", "give --data DIR")
    return COCO_FOLDER


def _predictors(run: OpenedRun, part: int | Literal["all"] | None) -> dict[str, Callable[[Images], Prediction]]:
    """Return the answer of each part that is asked for; nothing of a branch is computed unless it is."""
    count = len(run.model.branches)
    if isinstance(part, int) and part >= count:
        raise ConfigError(
            f"--branch {part}: the model has {count} branches, counted from 0",
            "leave --branch out to evaluate the primary path",
        )
    primary = {PRIMARY: plain_predictor(run.model.detector)}
    if part is None:
        return primary
    names = run.config.branch_names
    if part == "all":
        return primary | {name: _branch_predictor(run, index) for index, name in enumerate(names)}
    return {names[part]: _branch_predictor(run, part)}


def _branch_predictor(run: OpenedRun, branch: int) -> Callable[[Images], Prediction]:
    def predict(images: Images) -> Prediction:
        last = run.model(images)[1].layers[-1]
        return Prediction(last.logits[branch], last.boxes[branch])

    return predict


def _policy(
    config: DataConfig, on_bad_data: Literal["error", "skip"] | None, allow_outside: bool, other: dict[str, str]
) -> DataConfig:
    wanted = {"on_bad_data": on_bad_data or config.on_bad_data, "allow_outside": allow_outside or config.allow_outside}
    return config.model_copy(update={**wanted, **other})


def _own_split(run: OpenedRun, policy: DataConfig) -> CocoSplit:
    """Return the images that the run itself was evaluated on."""
    path = run.config.data.path
    if path is None:
        raise ConfigError("the run's config has no data path", "give --data DIR")
    splits = read_splits(Path(path), policy, run.checkpoint.state.overfit)
    if splits.val is None:
        raise NoValidationError(f"{path}: no validation split: {splits.missing} not found", "give --data DIR")
    return splits.val.with_categories(run.categories)


def _is_own(run: OpenedRun) -> bool:
    """Return whether a checkpoint lies in a run directory and its weights are those that the run evaluates."""
    return run_of(run.path) is not None and (run.averaged or run.checkpoint.ema is None)
