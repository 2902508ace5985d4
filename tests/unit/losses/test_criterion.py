"""The criterion against the plain losses under every option, its faults, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import operations
from benchmarks.criterion_case import synthetic_case
from benchmarks.operations import Cost
from lora_detr.errors import ConfigError, NumericalError
from lora_detr.losses.config import (
    BranchLossConfig,
    ClassificationConfig,
    CriterionConfig,
    EncoderLossConfig,
    PrimaryLossConfig,
    TermWeights,
)
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossReport
from lora_detr.matchers import TopKConfig
from lora_detr.ops.host import HostCopies
from lora_detr.structures import Assignment, PaddedTargets, Prediction
from tests.unit.losses.step_outputs import Step, make_step, plain_losses

CONFIGS = st.builds(
    CriterionConfig,
    primary=st.builds(PrimaryLossConfig, classification=st.sampled_from(["focal", "quality"])),
    branch=st.builds(
        BranchLossConfig,
        classification=st.sampled_from(["focal", "quality"]),
        quality=st.sampled_from(["score", "iou"]),
        merge_one_to_one=st.booleans(),
        duplicates=st.sampled_from(["official", "clean"]),
        weights=st.builds(TermWeights, classification=st.sampled_from([0.0, 2.0])),
    ),
    encoder=st.builds(EncoderLossConfig, match_to=st.sampled_from(["anchors", "predictions"])),
    constants=st.builds(ClassificationConfig, quality_factor=st.sampled_from([0.25, 1.0])),
)
MATCHERS = st.builds(
    TopKConfig,
    k=st.integers(1, 6),
    threshold=st.sampled_from([0.2, 0.41, 0.7, 1.0]),
    class_weight=st.sampled_from([0.1, 0.3]),
    strict_threshold=st.booleans(),
    force_best=st.booleans(),
    positive_fraction=st.sampled_from([None, 0.25, 0.6]),
    candidates=st.sampled_from(["official", "strict"]),
)


def build(layers: int, config: CriterionConfig, matchers: list[TopKConfig]) -> Criterion:
    names = [f"branch{n}" for n in range(len(matchers))]
    return Criterion(layers, config, names, [matcher.build() for matcher in matchers])


def run(step: Step, config: CriterionConfig, matchers: list[TopKConfig], **options: Any) -> LossReport:
    normaliser = config.normalise(float(sum(step.targets.counts)), 1)
    report: LossReport = build(len(step.output.layers), config, matchers)(
        step.output, step.branches, step.targets, normaliser, **options
    )
    return report


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data(), CONFIGS, st.lists(MATCHERS, max_size=3))
def test_equals_the_plain_losses(data: st.DataObject, config: CriterionConfig, matchers: list[TopKConfig]) -> None:
    step = make_step(
        data.draw(st.integers(0, 2**31)),
        layers=data.draw(st.integers(1, 2)),
        branches=len(matchers),
        counts=data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=2)),
        queries=data.draw(st.integers(1, 12)),
        classes=data.draw(st.integers(1, 3)),
    )
    layers, batch, queries = step.leaves["primary/logits"].shape[:3]
    priority = torch.rand(len(matchers) * layers, batch, queries)
    report = run(step, config, matchers, priority=priority)
    normaliser = max(sum(step.targets.counts), 1)
    plain = {name: value / normaliser for name, value in plain_losses(step, config, matchers, priority).items()}

    terms = {str(term.key): term for term in report.terms()}
    assert terms.keys() == plain.keys()
    for name, value in plain.items():
        assert terms[name].value == pytest.approx(value.item(), rel=2e-5, abs=1e-6), name
    plain_total = torch.stack([terms[name].weight * value for name, value in plain.items()]).sum()
    assert report.total.item() == pytest.approx(plain_total.item(), rel=2e-5)

    ours = torch.autograd.grad(report.total, list(step.leaves.values()))
    theirs = torch.autograd.grad(plain_total, list(step.leaves.values()))
    for name, found, expected in zip(step.leaves, ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_weights_are_those_of_the_config_and_shared_between_branches() -> None:
    weights = TermWeights(classification=3.0, l1=6.0, giou=9.0)
    config = CriterionConfig(branch=BranchLossConfig(weights=weights))
    step = make_step(0, layers=2, branches=3, counts=[2], queries=5, classes=2)
    report = run(step, config, [TopKConfig(k=1)] * 3)
    shared = {term.weight for term in report.terms() if term.key.source == "branch1"}
    assert shared == {1.0, 2.0, 3.0}
    total = sum(term.value * term.weight for term in report.terms())
    assert report.total.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "total", "ranks", "expected"),
    [
        ("exact", 0, 4, 0.25),
        ("exact", 6, 4, 1.5),
        ("exact", 2, 4, 0.5),
        ("official", 0, 4, 1.0),
        ("official", 6, 4, 1.5),
        ("official", 2, 4, 1.0),
    ],
)
def test_normaliser(kind: str, total: float, ranks: int, expected: float) -> None:
    assert CriterionConfig(normaliser=kind).normalise(total, ranks).of() == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["primary/logits", "primary/boxes"])
def test_a_cost_of_the_primary_path_that_is_not_finite_n06(place: str) -> None:
    step = make_step(0, layers=3, branches=1, counts=[2, 2], queries=5, classes=2)
    with torch.no_grad():
        step.leaves[place][2, 1] = math.nan
    with pytest.raises(NumericalError, match=r"layer 2 .*image 1 ") as caught:
        run(step, CriterionConfig(), [TopKConfig(k=2)])
    assert caught.value.exit_code == 6
    assert caught.value.code == "N06"


def test_a_cost_of_the_encoder_that_is_not_finite_n06() -> None:
    step = make_step(0, layers=2, branches=0, counts=[2, 2], queries=5, classes=2)
    with torch.no_grad():
        step.leaves["encoder/boxes"][0] = math.nan
    predictions = CriterionConfig(encoder=EncoderLossConfig(match_to="predictions"))
    with pytest.raises(NumericalError, match=r"encoder .*image 0 "):
        run(step, predictions, [])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_degenerate_boxes_everywhere_n04(value: float) -> None:
    step = make_step(0, layers=2, branches=2, counts=[3, 1], queries=6, classes=2)
    with torch.no_grad():
        for name, leaf in step.leaves.items():
            if name.endswith("boxes"):
                leaf.fill_(value)
    assert_finite(step, run(step, CriterionConfig(), [TopKConfig(k=3)] * 2))


@pytest.mark.parametrize("counts", [[0, 3], [0, 0]])
def test_empty_images_n07(counts: list[int]) -> None:
    step = make_step(0, layers=2, branches=2, counts=counts, queries=6, classes=2)
    report = run(step, CriterionConfig(), [TopKConfig(k=3)] * 2)
    assert_finite(step, report)
    if not any(counts):
        assert all(term.value == 0 for term in report.terms() if term.key.kind != "class")
        assert all(term.value > 0 for term in report.terms() if term.key.kind == "class")


def test_fewer_queries_than_k_and_than_objects_n10() -> None:
    for queries in (1, 2):
        step = make_step(queries, layers=2, branches=2, counts=[5, 1], queries=queries, classes=2, tokens=2)
        merged = CriterionConfig(branch=BranchLossConfig(merge_one_to_one=True))
        for config in (CriterionConfig(), merged):
            assert_finite(step, run(step, config, [TopKConfig(k=6), TopKConfig(k=3)]))


def test_no_query_above_the_threshold_n12() -> None:
    step = make_step(0, layers=2, branches=1, counts=[3, 1], queries=6, classes=2)
    report = run(step, CriterionConfig(), [TopKConfig(k=6, threshold=1.0, force_best=False)])
    assert_finite(step, report)
    assert all(t.value == 0 for t in report.terms() if t.key.source == "branch0" and t.key.kind != "class")


def assert_finite(step: Step, report: LossReport) -> None:
    """Check total, terms and gradients; every leaf takes part, so that no rank waits for a gradient."""
    assert report.total.isfinite() and report.values.isfinite().all()
    for gradient in torch.autograd.grad(report.total, list(step.leaves.values())):
        assert gradient.isfinite().all()
    branches = [name for name in step.leaves if name.startswith("branch/logits")]
    gradients = torch.autograd.grad(
        run(step, CriterionConfig(), [TopKConfig(k=1)] * (len(step.leaves["branch/logits"]) if branches else 0)).total,
        [step.leaves[name] for name in branches] or [step.leaves["primary/logits"]],
    )
    assert all(gradient.any() for gradient in gradients)


def test_matchers_of_unlike_options_and_of_ones_own() -> None:
    """Stacks are an optimisation: branch by branch gives the same; an own matcher needs only the protocol."""

    class FirstQuery:
        def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
            shape = (prediction.boxes.shape[0], *targets.mask.shape, 1)
            return Assignment(
                torch.zeros(shape, dtype=torch.int64), torch.ones(shape), targets.mask[None, :, :, None].expand(shape)
            )

    layers = 2
    step = make_step(0, layers=layers, branches=4, counts=[2, 3], queries=7, classes=2)
    configs = [TopKConfig(k=2), TopKConfig(k=4), TopKConfig(k=3, candidates="strict")]
    matchers = [configs[0].build(), configs[1].build(), FirstQuery(), configs[2].build()]
    priority = torch.rand(4 * layers, 2, 7)
    criterion = Criterion(layers, CriterionConfig(), [f"branch{n}" for n in range(4)], matchers)
    report = criterion(step.output, step.branches, step.targets, Normaliser(5.0), priority)
    values = {str(term.key): term.value for term in report.terms()}
    for n, config in ((0, configs[0]), (1, configs[1]), (3, configs[2])):
        alone = Criterion(layers, CriterionConfig(), [f"branch{n}"], [config.build()])
        assert step.branches is not None
        part = tuple(Prediction(one.logits[n : n + 1], one.boxes[n : n + 1]) for one in step.branches.layers)
        branches = type(step.branches)(part, ())
        own = alone(step.output, branches, step.targets, Normaliser(5.0), priority[n * layers : (n + 1) * layers])
        for term in own.terms():
            assert values[str(term.key)] == pytest.approx(term.value, rel=1e-6)
    first = step.leaves["branch/boxes"][2, 0, :, 0]
    expected = sum((first[b] - image.boxes).abs().sum().item() for b, image in enumerate(step.images)) / 5
    assert values["branch2/layer0/l1"] == pytest.approx(expected, rel=1e-5)


def test_merging_needs_scores() -> None:
    class Unscored:
        def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
            raise NotImplementedError

    merging = CriterionConfig(branch=BranchLossConfig(merge_one_to_one=True))
    with pytest.raises(ConfigError, match=r"`loss\.branch\.merge_one_to_one` compares scores, .* Unscored") as caught:
        Criterion(1, merging, ["branch0"], [Unscored()])
    assert "ScoredMatcher" in caught.value.remedy
    Criterion(1, CriterionConfig(), ["branch0"], [Unscored()])


def test_names_and_matchers_must_agree() -> None:
    with pytest.raises(ValueError, match="1 branch names but 0"):
        Criterion(1, CriterionConfig(), ["branch0"], [])


def cost_of(criterion: Criterion, step: Step, leaves: Sequence[Tensor]) -> Cost:
    """Count what matching and losses of a step take; also for the tests of query groups."""
    normaliser = Normaliser(sum(step.targets.counts))
    return operations.cost_of(lambda: criterion(step.output, step.branches, step.targets, normaliser).total, leaves)


@cache
def cost(preset: str, images: int, objects: int, branches: int) -> Cost:
    case = synthetic_case(preset, images, objects, branches, queries=50, classes=10, tokens=60)
    return operations.cost_of(case.total, case.leaves)


# LoRA branches, the same merged with one-to-one pairs, networks of their own, MS-DETR; denoising and hybrid queries.
AT_MOST = {
    "deformable-lora3": (420, 650),
    "deformable-pp-lora3": (420, 650),
    "deformable-ffn3": (420, 650),
    "ms-detr": (420, 650),
    "relation-lora3": (1000, 1000),
}
"""Operations forward, and with the backward pass."""

per_criterion = pytest.mark.parametrize("preset", AT_MOST)
per_size = pytest.mark.parametrize(
    ("images", "objects", "branches"),
    [(2, 8, 3), (2, 8, 1), (2, 8, 2), (2, 8, 5), (2, 1, 3), (2, 20, 3), (8, 8, 3), (8, 20, 3), (8, 20, 5), (2, 0, 3)],
)


@per_criterion
@per_size
def test_operations_are_few(preset: str, images: int, objects: int, branches: int) -> None:
    found = cost(preset, images, objects, branches)
    forward, both = AT_MOST[preset]
    assert found.forward <= forward
    assert found.forward + found.backward <= both


@per_criterion
@per_size
def test_operations_do_not_grow_with_objects_images_or_branches(
    preset: str, images: int, objects: int, branches: int
) -> None:
    found, expected = cost(preset, images, objects, branches), cost(preset, 2, 8, 3)
    assert found.forward == pytest.approx(expected.forward, rel=0.1)
    assert found.backward == pytest.approx(expected.backward, rel=0.1)


@per_criterion
@per_size
def test_the_host_waits_once(preset: str, images: int, objects: int, branches: int) -> None:
    """For all costs of one-to-one matching together; nothing else reads a value or has a shape that depends on one."""
    found = cost(preset, images, objects, branches)
    assert found.waiting == {}
    assert found.copies == found.reads == 1


@per_criterion
def test_the_report_is_read_with_one_more_copy(preset: str) -> None:
    case = synthetic_case(preset, 2, 3, 2, queries=50, classes=10, tokens=60)
    before = HostCopies.count
    report: LossReport = case.criterion(case.step.output, case.step.branches, case.step.targets, case.normaliser)
    report.terms()
    assert HostCopies.count - before == 2
