"""Every matcher a branch may name gives valid assignments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from lora_detr.config.load import load_config
from lora_detr.matchers import HungarianConfig, MatcherConfig, TopKConfig
from lora_detr.matchers.invariants import check_assignment
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs import run
from lora_detr.structures import Assignment, Matcher
from tests import small_runs
from tests.contracts.unions import members
from tests.unit.matchers.random_problems import Problem, make_problem, problems

KINDS = list(dict.fromkeys([*members(MatcherConfig), HungarianConfig]))
per_kind = pytest.mark.parametrize("kind", KINDS)
SYSTEMS = ("deformable-tiny", "deformable-pp-tiny-lora3", "relation-tiny-lora3", "ms-detr-tiny")


def make(kind: Any) -> Matcher:
    """Build a matcher with the fewest settings its config asks for."""
    needed = {name: 3 for name, field in kind.model_fields.items() if field.is_required()}
    matcher = kind.model_validate(needed).build()
    assert isinstance(matcher, Matcher)
    return matcher


@per_kind
@settings(max_examples=30, deadline=None, derandomize=True)
@given(problem=problems())
def test_assignments_are_valid_and_have_no_gradient(kind: Any, problem: Problem) -> None:
    problem.prediction.logits.requires_grad_()
    problem.prediction.boxes.requires_grad_()
    assignment = make(kind)(problem.prediction, problem.targets)
    check_assignment(assignment, problem.targets, problem.num_queries)
    assert assignment.mask.dtype == torch.bool
    assert assignment.query.dtype == torch.int64
    assert not assignment.score.requires_grad
    assert assignment.score[assignment.mask].isfinite().all()


@per_kind
def test_shape_does_not_depend_on_what_is_predicted(kind: Any) -> None:
    shapes = set()
    for seed in range(5):
        problem = make_problem(seed, groups=2, counts=[4, 0], queries=20, classes=3)
        shapes.add(make(kind)(problem.prediction, problem.targets).mask.shape)
    assert len(shapes) == 1


@per_kind
def test_inputs_are_left_alone(kind: Any) -> None:
    problem = make_problem(0, groups=2, counts=[4, 1], queries=20, classes=3)
    before = [problem.prediction.logits.clone(), problem.prediction.boxes.clone(), problem.targets.boxes.clone()]
    make(kind)(problem.prediction, problem.targets)
    after = [problem.prediction.logits, problem.prediction.boxes, problem.targets.boxes]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("preset", SYSTEMS)
@pytest.mark.parametrize("kind", members(MatcherConfig), ids=lambda kind: kind.__name__)
def test_every_system_trains_with_it(kind: Any, preset: str, shapes_tiny: Path, tmp_path: Path) -> None:
    """Also where one-to-one pairs are merged in, and with a spec as ``--branch`` takes it."""
    name = kind.model_fields["kind"].default
    specs = [f"{name}:k=3", f"{name}:k=2", f"ffn/{name}:k=1"]
    steps = ("train.max_steps=2", "evaluation.every=2")
    resolved = small_runs.reduced(preset, shapes_tiny, *steps, branches=specs)
    assert {type(branch.matcher) for branch in resolved.loaded.config.branches} == {kind}
    display = small_runs.Lines()
    directory = run.start(resolved, tmp_path / "run", 2, dry_run=False, display=display).directory
    shown = [line for line in display.lines if line.startswith("branch")]
    assert len(shown) == 3 and all(f"{name} k=" in line for line in shown)
    losses = [line for line in small_runs.read_lines(directory / "metrics.jsonl") if "loss_hex" in line]
    assert len(losses) == 2


def broken(**changes: Any) -> Assignment:
    values = {
        "query": torch.tensor([[[[0, 1]]]]),
        "score": torch.zeros(1, 1, 1, 2),
        "mask": torch.ones(1, 1, 1, 2).bool(),
    }
    return Assignment(**(values | changes))


@pytest.mark.parametrize(
    ("assignment", "options", "message"),
    [
        (broken(query=torch.tensor([[[[0, 9]]]])), {}, "out of range"),
        (broken(query=torch.tensor([[[[1, 1]]]])), {}, "twice"),
        (broken(), {"at_most": 1}, "too many"),
        (broken(score=torch.zeros(1, 1, 1, 3)), {}, "shapes differ"),
    ],
)
def test_the_invariants_notice(assignment: Assignment, options: dict[str, Any], message: str) -> None:
    targets = make_problem(0, groups=1, counts=[1], queries=3, classes=1).targets
    check_assignment(broken(), targets, 3)
    with pytest.raises(AssertionError, match=message):
        check_assignment(assignment, targets, 3, **options)


def test_settings_without_a_kind_are_those_of_topk() -> None:
    loaded = load_config(RunConfig, preset="deformable-tiny-lora3", overrides=["branches.0.matcher={k: 3}"])
    assert loaded.config.branches[0].matcher == TopKConfig(k=3)
