"""A matcher from outside the package: trained with, refused on the first step where it is wrong."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_detr.checkpoints.stripped_file import read_stripped
from lora_detr.errors import ConfigError
from lora_detr.losses.branch_matching import BranchMatching, WrongMatcherError
from lora_detr.losses.config import BranchLossConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.matchers import HungarianConfig
from lora_detr.runs import run
from lora_detr.runs.request import Resolved
from lora_detr.structures import Assignment, PaddedTargets, Prediction
from tests import small_runs
from tests.unit.matchers.random_problems import make_problem

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_matcher.py"
NearestCentres: Any = runpy.run_path(str(EXAMPLE))["NearestCentres"]


def test_the_example_trains_and_strips(shapes_tiny: Path, tmp_path: Path) -> None:
    stripped = runpy.run_path(str(EXAMPLE))["main"](shapes_tiny, tmp_path / "run", small_runs.REDUCED)
    assert read_stripped(stripped).detector.num_classes == 10
    lines = small_runs.read_lines(tmp_path / "run" / "metrics.jsonl")
    assert {line["epoch"] for line in lines} == {0, 1}


def test_the_example_draws_every_rule(small_run: Path, tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLE.with_name("assignments.py")))["main"](small_run, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (1540, 836)


def one_branch(data: Path, *overrides: str) -> Resolved:
    return small_runs.reduced("deformable-tiny", data, *overrides, branches=["topk:k=2"])


def losses(directory: Path) -> list[str]:
    return [line["loss_hex"] for line in small_runs.read_lines(directory / "metrics.jsonl") if "loss_hex" in line]


def test_matchers_given_to_a_run_replace_those_of_its_settings(shapes_tiny: Path, tmp_path: Path) -> None:
    """Resumed with the same one, the run equals an uninterrupted one."""
    quiet, own = ("evaluation.every=9", "train.max_steps=4"), [NearestCentres(2)]

    def train(name: str, *overrides: str, **options: Any) -> Path:
        display = small_runs.Lines()
        settings = one_branch(shapes_tiny, *quiet, *overrides)
        directory = run.start(settings, tmp_path / name, 4, dry_run=False, display=display, **options).directory
        shown = any("matched by NearestCentres" in line for line in display.lines)
        assert shown == ("branch_matchers" in options)
        return directory

    whole = losses(train("whole", branch_matchers=own))
    assert len(whole) == 4
    assert losses(train("settings")) != whole
    parted = train("parted", "train.max_steps=3", branch_matchers=own)
    run.resume(parted, {"train.max_steps": 4}, small_runs.Lines(), branch_matchers=own)
    assert losses(parted) == whole


def test_as_many_matchers_as_branches(shapes_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a matcher for each of 1 branches, found 2"):
        run.start(
            one_branch(shapes_tiny), tmp_path / "run", None, False, small_runs.Lines(), branch_matchers=[None, None]
        )
    assert not (tmp_path / "run").exists()


class Wrong:
    """Changes what a valid matcher returns."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        pairs = NearestCentres(2)(prediction, targets)
        return replace(pairs, **{name: change(getattr(pairs, name)) for name, change in self.changes.items()})


class Promising(Wrong):
    """Promises what it does not keep."""

    unique_queries = True


class WrongScores(Wrong):
    """Scores whose last two axes are exchanged."""

    def score(self, prediction: Prediction, targets: PaddedTargets) -> Tensor:
        return torch.zeros(*prediction.boxes.shape[:3], targets.mask.shape[1])

    def match(self, score: Tensor, mask: Tensor, priority: Tensor | None = None) -> Assignment:
        problem = make_problem(0, groups=2, counts=[3, 1], queries=6, classes=2)
        return NearestCentres(2)(problem.prediction, problem.targets)


EVERY = dict.fromkeys(("query", "score", "mask"))


@pytest.mark.parametrize(
    ("matcher", "rule"),
    [
        (Wrong(query=lambda x: x + 6), "query index out of range 0 to 5"),
        (Wrong(query=lambda x: x - 6), "query index out of range 0 to 5"),
        (Wrong(mask=torch.ones_like), "a padded target is matched"),
        (Wrong(query=torch.zeros_like), "a pair stands twice"),
        (Wrong(score=lambda x: x[..., :1]), "shapes differ"),
        (Wrong(**dict.fromkeys(EVERY, lambda x: x[:1])), r"shape is \(1, 2, 3, 2\), expected \[2, 2, 3, k\]"),
        (Wrong(**dict.fromkeys(EVERY, lambda x: x.transpose(1, 2))), "shape is"),
        (Wrong(**dict.fromkeys(EVERY, lambda x: x[0])), "shape is"),
        (Wrong(mask=lambda x: x.float()), "expected int64 and bool"),
        (Wrong(query=lambda x: x.to("meta")), "are on meta, cpu and cpu, not cpu"),
        (Promising(query=lambda x: torch.arange(2).expand_as(x)), "a query serves two targets"),
        (WrongScores(), r"scores have the shape \(2, 2, 6, 3\), expected \(2, 2, 3, 6\)"),
    ],
)
def test_a_wrong_matcher_is_refused_on_the_first_step(matcher: Any, rule: str) -> None:
    problem = make_problem(0, groups=2, counts=[3, 1], queries=6, classes=2)
    matching = BranchMatching([matcher], 2, BranchLossConfig())
    one_to_one = HungarianConfig().build()(problem.prediction, problem.targets)
    name = type(matcher).__name__
    with pytest.raises(
        WrongMatcherError, match=f"^error: matcher {name} broke a rule on the first step: .*{rule}"
    ) as caught:
        matching(problem.prediction, problem.targets, one_to_one, None)
    assert (caught.value.exit_code, caught.value.on_all_ranks) == (2, False)


def test_a_right_matcher_is_checked_once() -> None:
    problem = make_problem(0, groups=2, counts=[3, 1], queries=6, classes=2)
    matcher = Wrong()
    matching = BranchMatching([matcher], 2)
    one_to_one = HungarianConfig().build()(problem.prediction, problem.targets)
    matching(problem.prediction, problem.targets, one_to_one, None)
    matcher.changes = {"score": lambda x: x * 0}
    assert not matching.unchecked
    assert not matching(problem.prediction, problem.targets, one_to_one, None).score.any()


def test_a_trainer_takes_a_criterion(shapes_tiny: Path, tmp_path: Path) -> None:
    config = one_branch(shapes_tiny).loaded.config
    own = config.build_criterion([NearestCentres(1)])
    splits = small_runs.splits_of(shapes_tiny, config)
    trainer = small_runs.trainer(config, splits, tmp_path, own)
    assert trainer.criterion is own is trainer.stepper.criterion
    assert isinstance(small_runs.trainer(config, splits, tmp_path).criterion, Criterion)
