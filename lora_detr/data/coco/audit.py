"""Both splits of a data set, read and checked together: what is wrong with either is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_detr.data.coco.checks import OnBadData
from lora_detr.data.coco.kept import load_kept
from lora_detr.data.coco.plausibility import absent_classes, imbalance, split_doubts
from lora_detr.data.coco.report import AnnotationError, DataReport, Problem, remedy_of
from lora_detr.data.coco.shared_images import shared_images
from lora_detr.data.coco.source import DataPaths, ReadAs, Source
from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.coco.verification import Verified, Verify, verify_images
from lora_detr.data.images import MAX_PIXELS
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.quality.detector_limits import DetectorLimits, limit_findings
from lora_detr.data.quality.duplicates import duplicate_finding
from lora_detr.data.quality.finding import PLACES, Finding
from lora_detr.data.quality.twin_images import twins_between, twins_within
from lora_detr.errors import DataError

# Shared images that a warning names.
NAMED = 5


@dataclass(frozen=True)
class Audit:
    """What was found in a data set.

    Attributes:
        reports: counts of each split that could be read, training first.
        problems: what stops a run, training first, in file order.
        findings: all that was found, the problems by kind first, then warnings, then what is worth knowing.
        splits: those that could be read, training first.
    """

    reports: tuple[DataReport, ...]
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]
    splits: tuple[CocoSplit, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each finding that does not stop a run."""
        return tuple(str(finding) for finding in self.findings if finding.severity != "error")

    def to_json(self) -> dict[str, Any]:
        """Return reports, problems and findings by name."""
        return {
            "reports": [asdict(report) for report in self.reports],
            "problems": [asdict(problem) for problem in self.problems],
            "findings": [finding.to_json() for finding in self.findings],
        }


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
        findings: why a split can teach or measure little; objects that repeat others; images that repeat others, as far
            as files were read, and that both splits share, unless that is a fault.
    """

    train: CocoSplit | None
    val: CocoSplit | None
    places: tuple[Path, ...]
    faults: tuple[DataError, ...]
    findings: tuple[Finding, ...] = ()

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
    limits: DetectorLimits | None = None,
) -> Audit:
    """Read and check a data set, as a run does before it starts, but to the end whatever is wrong.

    Args:
        path: folder or file of a data set.
        verify: see ``Policy``, also for what follows.
        strict: see there.
        on_bad_data: see there.
        allow_outside: see there.
        how: its layout.
        limits: of the detector that is to be trained; None leaves out what depends on it.

    Raises:
        ConfigError: ``path`` does not exist, or the YAML file is malformed.
        DataError: the training split, or a path named in the YAML file, is not there.
        WorkerError: a process that reads images died.
    """
    paths = find_splits(path, how)
    found = examine(paths, Policy(verify, strict, on_bad_data, allow_outside))
    findings = [finding for split in found.splits for finding in split.report.findings()]
    if found.train:
        findings += imbalance(found.train.report.file, _objects(found.train))
    findings += found.findings
    if limits is not None:
        findings += limit_findings(found.splits, limits)
    if paths.missing:
        text = f"no validation split: {paths.missing} not found"
        findings.append(
            Finding("Q14", "info", 1, text, remedy="loradetr data convert PATH OUT --split val=0.2 makes one")
        )
    problems = problems_of(found.faults)
    findings.sort(key=lambda finding: finding.severity != "warning")
    reports = tuple(split.report for split in found.splits)
    return Audit(reports, problems, (*_by_kind(problems), *findings), found.splits)


def _by_kind(problems: Sequence[Problem]) -> list[Finding]:
    """Return a finding for each kind of problem, the first of its texts standing for all."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.code, []).append(problem.text)
    return [
        Finding(code, "error", len(texts), texts[0], tuple(texts), remedy_of(code).rstrip(","))
        for code, texts in kinds.items()
    ]


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
    places = [paths.train.path]
    val, val_files = None, Verified({}, {}, {})
    if validation and paths.val is not None:
        places.append(paths.val.path)
        val, val_files = _examine_split(paths.val, policy, faults)
    findings = _doubts(train, val)
    for split, files in ((train, train_files), (val, val_files)):
        findings += twins_within(split, files) if split is not None else []
    if train is not None and val is not None:
        try:
            val.with_categories(train.categories)
        except DataError as error:
            faults.append(error)
        pairs = shared_images(train.records, val.records, train_files.digests, val_files.digests)
        if pairs and policy.strict:
            faults.append(AnnotationError(val.annotations_path, _shared_problems(train, val, pairs)))
        elif pairs:
            findings.append(_shared_finding(train, val, pairs))
        findings += twins_between(train, val, train_files, val_files, {other for _, other in pairs})
    return Examined(train, val, tuple(places), tuple(faults), tuple(findings))


def _objects(split: CocoSplit) -> list[tuple[str, int]]:
    return [(each.name, each.objects) for each in split.report.per_category]


def _doubts(train: CocoSplit | None, val: CocoSplit | None) -> list[Finding]:
    """Return why either split can teach or measure little."""
    found = []
    if train is not None:
        found += split_doubts(train.report.file, _objects(train), train.report.crowd)
        if val is not None:
            elsewhere = _objects_elsewhere(val, train)
            found += split_doubts(
                val.report.file, _objects(val), val.report.crowd, other=train.report.file, elsewhere=elsewhere
            )
        found += absent_classes(train.report.file, _objects(train), _objects_elsewhere(train, val))
    for split in (train, val):
        found += duplicate_finding(split) if split is not None else []
    return found


def _objects_elsewhere(split: CocoSplit, other: CocoSplit | None) -> list[int]:
    """Return how many objects of each class of a split another one has."""
    seen = {each.id: each.objects for each in other.report.per_category} if other is not None else {}
    return [seen.get(each.id, 0) for each in split.report.per_category]


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
    nothing = Verified({}, {}, {})
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


def _shared_finding(train: CocoSplit, val: CocoSplit, pairs: Sequence[tuple[int, int]]) -> Finding:
    named = ", ".join(f"{image_id} and {other}" for image_id, other in pairs[:NAMED])
    more = ", ..." if len(pairs) > NAMED else ""
    return Finding(
        "D27",
        "warning",
        len(pairs),
        f"{train.report.file} and {val.report.file} share {len(pairs):,} of {len(val):,} validation images (ids {named}"
        f"{more}): what is measured on them is too good",
        tuple(problem.text for problem in _shared_problems(train, val, pairs[:PLACES])),
        "take them out of one split",
    )
