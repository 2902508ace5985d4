"""Every matcher a branch may name gives valid assignments, under the same rules, in few operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from benchmarks.criterion_case import Case, synthetic_case
from benchmarks.operations import OpCounter, cost_of
from lora_detr.config.load import load_config
from lora_detr.losses.config import BranchLossConfig, CriterionConfig
from lora_detr.losses.criterion import Criterion, NonFiniteMatchError
from lora_detr.losses.normaliser import Normaliser
from lora_detr.matchers import HungarianConfig, MatcherConfig, TopKConfig
from lora_detr.matchers.atss import ATSSConfig
from lora_detr.matchers.hungarian_repeat import HungarianRepeatConfig
from lora_detr.matchers.invariants import check_assignment
from lora_detr.matchers.many_to_one import ManyToOneConfig
from lora_detr.matchers.simota import SimOTAConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs import run
from lora_detr.structures import Assignment, Matcher, PaddedTargets, Prediction, Target
from tests import small_runs
from tests.contracts.unions import members
from tests.unit.losses.step_outputs import make_step
from tests.unit.matchers.random_problems import Problem, draw_boxes, make_problem, near_targets, problems

KINDS = list(dict.fromkeys([*members(MatcherConfig), HungarianConfig]))
per_kind = pytest.mark.parametrize("kind", KINDS)
SYSTEMS = ("deformable-tiny", "deformable-pp-tiny-lora3", "relation-tiny-lora3", "ms-detr-tiny")


def make(kind: Any) -> Matcher:
    """Build a matcher with the fewest settings its config asks for."""
    needed = {name: 3 for name, field in kind.model_fields.items() if field.is_required()}
    if "positive_fraction" in kind.model_fields:  # of a random draw
        needed["positive_fraction"] = None
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
    unique = getattr(make(kind), "unique_queries", False)
    check_assignment(assignment, problem.targets, problem.num_queries, unique_queries=unique)
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


def pairs_of(kind: Any, prediction: Prediction, targets: PaddedTargets) -> dict[tuple[int, int], list[Any]]:
    """Return (query, target, score) of every pair, by group and image."""
    found = make(kind)(prediction, targets)
    pairs = {}
    for g, b in product(range(found.mask.shape[0]), range(found.mask.shape[1])):
        target, slot = found.mask[g, b].nonzero(as_tuple=True)
        rows = zip(*(part[g, b][target, slot].tolist() for part in (found.query, found.score)), strict=True)
        pairs[g, b] = sorted((query, t, score) for (query, score), t in zip(rows, target.tolist(), strict=True))
    return pairs


def some_problem(seed: int = 7) -> Problem:
    problem = make_problem(seed, groups=2, counts=[4, 0, 2], queries=15, classes=3)
    reference = near_targets(draw_boxes(2, 3, 15), problem.images)
    return replace(problem, prediction=replace(problem.prediction, reference=reference))


def chosen_of(prediction: Prediction, take: Callable[[Tensor], Tensor]) -> Prediction:
    """Return a prediction with every tensor changed alike."""
    assert prediction.reference is not None
    return Prediction(take(prediction.logits), take(prediction.boxes), take(prediction.reference))


@per_kind
def test_permuted_queries_give_permuted_pairs(kind: Any) -> None:
    problem = some_problem()
    order = torch.randperm(15)
    moved = pairs_of(kind, chosen_of(problem.prediction, lambda part: part[..., order, :]), problem.targets)
    plain = pairs_of(kind, problem.prediction, problem.targets)
    assert any(plain.values())
    for place, pairs in plain.items():
        back = sorted((int(order[query]), target, score) for query, target, score in moved[place])
        assert [pair[:2] for pair in back] == [pair[:2] for pair in pairs]
        assert [pair[2] for pair in back] == pytest.approx([pair[2] for pair in pairs])


@per_kind
def test_an_image_alone_and_a_group_alone_give_what_they_give_in_a_stack(kind: Any) -> None:
    """So padding and neighbours change nothing."""
    problem = some_problem()
    together = pairs_of(kind, problem.prediction, problem.targets)
    for g, b in together:
        alone = chosen_of(problem.prediction, lambda part, g=g, b=b: part[g : g + 1, b : b + 1])  # type: ignore[misc]
        found = pairs_of(kind, alone, PaddedTargets.from_targets([problem.images[b]]))[0, 0]
        assert [pair[:2] for pair in found] == [pair[:2] for pair in together[g, b]]
        assert [pair[2] for pair in found] == pytest.approx([pair[2] for pair in together[g, b]])


@per_kind
def test_the_same_problem_gives_the_same_pairs(kind: Any) -> None:
    problem = some_problem()
    assert pairs_of(kind, problem.prediction, problem.targets) == pairs_of(kind, problem.prediction, problem.targets)


@per_kind
def test_of_identical_queries_the_lower_is_paired_first(kind: Any) -> None:
    problem = some_problem()
    twice = chosen_of(problem.prediction, lambda part: part[..., [*range(15), *range(15)], :])
    for pairs in pairs_of(kind, twice, problem.targets).values():
        queries = {query for query, _, _ in pairs}
        assert all(query - 15 in queries for query in queries if query >= 15)


def awkward_problem() -> Problem:
    """Two identical targets, one without area, one far from all; overlaps of 0 and 1; probabilities of 0 and 1."""
    box = torch.tensor([0.5, 0.5, 0.25, 0.25])
    boxes = torch.stack([box, box, torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.05, 0.95, 0.05, 0.05])])
    images = (
        Target(boxes, torch.tensor([0, 0, 1, 1]), 0, (64, 64)),
        Target(boxes[:0], torch.zeros(0).long(), 1, (9, 9)),
    )
    predicted = torch.stack([box, box, torch.zeros(4), torch.tensor([0.5, 0.5, 0.0, 0.5]), box.flip(0)])
    logits = torch.tensor([[200.0, -200.0], [torch.inf, -torch.inf], [-torch.inf, 0.0], [0.0, 0.0], [-200.0, 200.0]])
    stack = [part.expand(1, 2, -1, -1).contiguous() for part in (logits, predicted)]
    return Problem(Prediction(stack[0], stack[1], stack[1].clone()), PaddedTargets.from_targets(images), images)


@pytest.mark.parametrize("kind", members(MatcherConfig))
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_awkward_values_give_soft_targets_from_0_to_1(kind: Any, queries: int) -> None:
    problem = awkward_problem()
    prediction = chosen_of(problem.prediction, lambda part: part[..., :queries, :])
    assignment = make(kind)(prediction, problem.targets)
    check_assignment(assignment, problem.targets, queries)
    assert not assignment.mask[:, 1].any()
    assert ((assignment.score >= 0) & (assignment.score <= 1)).all()


@pytest.mark.parametrize("kind", members(MatcherConfig))
def test_no_overlap_and_no_probability_give_no_nan(kind: Any) -> None:
    problem = some_problem()
    far = chosen_of(problem.prediction, lambda part: torch.zeros_like(part))
    assignment = make(kind)(replace(far, logits=far.logits - torch.inf), problem.targets)
    check_assignment(assignment, problem.targets, 15)
    assert assignment.score.isfinite().all()


@pytest.mark.parametrize("kind", members(MatcherConfig))
@pytest.mark.parametrize("part", ["logits", "boxes"])
def test_a_value_that_is_no_number_is_named_by_its_branch(kind: Any, part: str) -> None:
    """By the message, or by the only loss that is not finite; a box of no numbers may instead be left unpaired."""
    step = make_step(0, layers=2, branches=2, counts=[3, 2], queries=8, classes=2)
    assert step.branches is not None
    with torch.no_grad():
        getattr(step.branches.layers[1], part)[1, 0, 4] = torch.nan
    criterion = Criterion(2, CriterionConfig(), ["branch0", "branch1"], [make(kind), make(kind)])
    lost: set[object] = set()
    try:
        terms = criterion(step.output, step.branches, step.targets, Normaliser(5)).terms()
        lost = {f"{term.key.source} at layer {term.key.layer}" for term in terms if not isfinite(term.value)}
    except NonFiniteMatchError as error:
        lost = {error.where.removeprefix("predictions of ")}
        found = error.image
    else:
        found = 0
    assert lost == {"branch1 at layer 1"} or (part == "boxes" and not lost)
    assert found == 0


@pytest.mark.parametrize("kind", members(MatcherConfig))
def test_losses_reach_what_the_branch_predicts_and_not_what_it_refines(kind: Any) -> None:
    step = make_step(0, layers=2, branches=1, counts=[3, 2], queries=8, classes=2)
    references = [layer.reference.requires_grad_() for layer in step.output.layers]
    matcher = make(kind)
    config = CriterionConfig(branch=BranchLossConfig(quality="score"))
    report = Criterion(2, config, ["branch0"], [matcher])(step.output, step.branches, step.targets, Normaliser(5))
    report.total.backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in step.leaves.values())
    assert step.leaves["branch/logits"].grad is not None and step.leaves["branch/logits"].grad.any()
    assert [reference.grad for reference in references] == [None, None]


def mixed(case: Case, kinds: Sequence[Any]) -> Case:
    """Return a step whose branches are matched by rules of these kinds."""
    names = [f"branch{i}" for i in range(len(kinds))]
    layers, loss = case.config.model.decoder_layers, case.config.loss
    return replace(case, criterion=Criterion(layers, loss, names, [make(kind) for kind in kinds]))


def test_three_branches_of_any_three_kinds_take_at_most_600_operations() -> None:
    case = synthetic_case("deformable-lora3", 2, 8, 3, queries=50, classes=10, tokens=60)
    for kinds in combinations(members(MatcherConfig), 3):
        with OpCounter() as forward:
            mixed(case, kinds).total()
        assert forward.names.total() <= 600, kinds


@pytest.mark.parametrize("kinds", [(TopKConfig, ATSSConfig, SimOTAConfig), (HungarianRepeatConfig, ManyToOneConfig)])
def test_mixed_branches_take_one_host_copy_and_no_operation_more_for_more_images(kinds: Sequence[Any]) -> None:
    """Least-cost problems of the primary path and of all branches share the copy."""
    found = []
    for images, objects in ((2, 8), (8, 20), (2, 0)):
        case = synthetic_case("deformable-lora3", images, objects, len(kinds), queries=50, classes=10, tokens=60)
        cost = cost_of(mixed(case, kinds).total, case.leaves)
        assert (cost.waiting, cost.copies, cost.reads) == ({}, 1, 1)
        found.append((cost.forward, cost.backward))
    assert len(set(found)) == 1


@pytest.mark.parametrize("preset", SYSTEMS)
def test_every_system_trains_with_all_kinds(preset: str, shapes_tiny: Path, tmp_path: Path) -> None:
    """Also where one-to-one pairs are merged in, and with a spec as ``--branch`` takes it."""
    kinds = members(MatcherConfig)
    names = [kind.model_fields["kind"].default for kind in kinds]
    specs = [spec for name in names for spec in (f"{name}:k=3", f"{name}:k=2", f"ffn/{name}:k=1")]
    steps = ("train.max_steps=2", "evaluation.every=2")
    resolved = small_runs.reduced(preset, shapes_tiny, *steps, branches=specs)
    assert [type(branch.matcher) for branch in resolved.loaded.config.branches[::3]] == kinds
    display = small_runs.Lines()
    directory = run.start(resolved, tmp_path / "run", 2, dry_run=False, display=display).directory
    shown = [line for line in display.lines if line.startswith("branch")]
    assert len(shown) == len(specs)
    assert all(f"{name} k=" in line for name, line in zip(names, shown[::3], strict=True))
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
