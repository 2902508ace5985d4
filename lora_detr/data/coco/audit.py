"""Both splits of a data set, read and checked together: what is wrong with either is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_detr.data.coco.checks import OnBadData
from lora_detr.data.coco.kept import load_kept
from lora_detr.data.coco.plausibility import imbalance, split_doubts
from lora_detr.data.coco.report import AnnotationError, DataReport, Problem
from lora_detr.data.coco.shared_images import shared_images
from lora_detr.data.coco.source import DataPaths, ReadAs, Source
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.coco.verification import Verified, Verify, verify_images
from lora_detr.data.images import MAX_PIXELS
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import DataError

# Shared images that a warning names.
NAMED = 5


@dataclass(frozen=True)
class Audit:
    """What was found in a data set.

    Attributes:
        reports: counts of each split that could be read, training first.
        problems: what stops a run, training first, in file order.
        warnings: what does not stop a run but was dropped, repaired or looks wrong, a line each.
    """

    reports: tuple[DataReport, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return reports, problems and warnings by name."""
        return asdict(self)


@dataclass(frozen=True)
class Policy:
    """How strictly a data set is looked at.

    Attributes:
        verify: what is done with every image file beforehand; see ``verify_images``.
        strict: boxes without width or height or outside their image, and images that both splits share, are errors.
        on_bad_data: ``skip`` leaves out malformed boxes, and images that cannot be read.
        allow_outside: file names may be absolute or lead out of the image folder.
        max_pixels: larger images are refused before decoding.
    """

    verify: Verify = "none"
    strict: bool = False
    on_bad_data: OnBadData = "error"
    allow_outside: bool = False
    max_pixels: int = MAX_PIXELS

    def load(self, source: Source) -> CocoSplit:
        """Read one split, without verifying its images; errors as of ``load_split``."""
        return load_kept(source, strict=self.strict, on_bad_data=self.on_bad_data, allow_outside=self.allow_outside)


@dataclass(frozen=True)
class Examined:
    """A data set as far as it could be read.

    Attributes:
        train: the training split; None if it is faulty.
        val: the validation split; None if it is faulty, or there is none, or it was not asked for.
        places: annotation files that were looked at.
        faults: what is wrong, training first.
        warnings: why a split can teach or measure little; images that both splits share, unless that is a fault.
    """

    train: CocoSplit | None
    val: CocoSplit | None
    places: tuple[Path, ...]
    faults: tuple[DataError, ...]
    warnings: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[CocoSplit, ...]:
        """Those that could be read, training first."""
        return tuple(split for split in (self.train, self.val) if split is not None)

    def raise_faults(self) -> None:
        """Raise what is wrong, if anything is.

        Raises:
            DataError: the only fault.
            AnnotationError: the problems of all.
        """
        if len(self.faults) == 1:
            raise self.faults[0]
        if self.faults:
            raise AnnotationError(self.places[0], problems_of(self.faults), self.places[1:])


def audit(
    path: Path,
    *,
    verify: Verify = "none",
    strict: bool = False,
    on_bad_data: OnBadData = "error",
    allow_outside: bool = False,
    how: ReadAs = ReadAs(),  # noqa: B008 (frozen)
) -> Audit:
    """Read and check a data set, as a run does before it starts, but to the end whatever is wrong.

    Args:
        path: folder or file of a data set.
        verify: see ``Policy``, also for what follows.
        strict: see there.
        on_bad_data: see there.
        allow_outside: see there.
        how: its layout.

    Raises:
        ConfigError: ``path`` does not exist, or the YAML file is malformed.
        DataError: the training split, or a path named in the YAML file, is not there.
        WorkerError: a process that reads images died.
    """
    paths = find_splits(path, how)
    found = examine(paths, Policy(verify, strict, on_bad_data, allow_outside))
    remarks = [f"{split.report.file}: {remark}" for split in found.splits for remark in split.report.remarks()]
    rare = imbalance([(each.name, each.objects) for each in found.train.report.per_category]) if found.train else ""
    if rare:
        remarks.append(f"classes are imbalanced: {rare}; train with --set data.train.sampling=repeat-factor")
    absent = [f"no validation split: {paths.missing} not found"] if paths.missing else []
    reports = tuple(split.report for split in found.splits)
    return Audit(reports, problems_of(found.faults), (*remarks, *found.warnings, *absent))


def examine(paths: DataPaths, policy: Policy, *, validation: bool = True) -> Examined:
    """Read and check the splits of a data set; faults are kept, not raised.

    Args:
        paths: of its files.
        policy: how strictly.
        validation: false leaves the validation split alone.

    Raises:
        WorkerError: a process that reads images died.
    """
    faults: list[DataError] = []
    train, train_files = _examine_split(paths.train, policy, faults)
    if not validation or paths.val is None:
        return Examined(train, None, (paths.train.path,), tuple(faults), tuple(_doubts(train, None)))
    val, val_files = _examine_split(paths.val, policy, faults)
    warnings = _doubts(train, val)
    if train is not None and val is not None:
        try:
            val.with_categories(train.categories)
        except DataError as error:
            faults.append(error)
        pairs = shared_images(train.records, val.records, train_files.digests, val_files.digests)
        if pairs and policy.strict:
            faults.append(AnnotationError(val.annotations_path, _shared_problems(train, val, pairs)))
        elif pairs:
            warnings.append(_shared_warning(train, val, pairs))
    return Examined(train, val, (paths.train.path, paths.val.path), tuple(faults), tuple(warnings))


def _doubts(train: CocoSplit | None, val: CocoSplit | None) -> list[str]:
    """Return why either split can teach or measure little."""
    lines = []
    if train is not None:
        own = [(each.name, each.objects) for each in train.report.per_category]
        lines += split_doubts(train.report.file, own, train.report.crowd)
        if val is not None:
            seen = {each.id: each.objects for each in train.report.per_category}
            own = [(each.name, each.objects) for each in val.report.per_category]
            elsewhere = [seen.get(each.id, 0) for each in val.report.per_category]
            lines += split_doubts(val.report.file, own, val.report.crowd, other=train.report.file, elsewhere=elsewhere)
    return lines


def problems_of(faults: Sequence[DataError]) -> tuple[Problem, ...]:
    """Return all problems of some errors, in their order."""
    return tuple(
        problem
        for fault in faults
        for problem in (
            fault.problems if isinstance(fault, AnnotationError) else (Problem(fault.code or "data", fault.message),)
        )
    )


def _examine_split(source: Source, policy: Policy, faults: list[DataError]) -> tuple[CocoSplit | None, Verified]:
    """Return a split and what its files have shown, and add to ``faults``."""
    nothing = Verified({}, {})
    try:
        split = policy.load(source)
        files = verify_images(split.records, policy.verify, max_pixels=policy.max_pixels)
    except DataError as error:
        faults.append(error)
        return None, nothing
    problems = tuple(files.problems.values())
    split = split if policy.verify == "none" else split.with_digests(files.digests)
    if not problems:
        return split, files
    if policy.verify == "decode" and policy.on_bad_data == "skip" and len(problems) < len(split):
        return replace(split, report=replace(split.report, unreadable=len(problems))), files
    faults.append(AnnotationError(source.images, problems))
    return split, files


def _shared_problems(train: CocoSplit, val: CocoSplit, pairs: Sequence[tuple[int, int]]) -> list[Problem]:
    places = {image_id: i for i, image_id in enumerate(val.image_ids)}
    return [
        Problem(
            "D27",
            f"{val.report.file}: image id {other} ({val.records.file_name(places[other])}) is image id {image_id} of "
            f"{train.report.file}",
        )
        for image_id, other in pairs
    ]


def _shared_warning(train: CocoSplit, val: CocoSplit, pairs: Sequence[tuple[int, int]]) -> str:
    named = ", ".join(f"{image_id} and {other}" for image_id, other in pairs[:NAMED])
    more = ", ..." if len(pairs) > NAMED else ""
    return (
        f"{train.report.file} and {val.report.file} share {len(pairs):,} of {len(val):,} validation images (ids {named}"
        f"{more}): what is measured on them is too good"
    )
