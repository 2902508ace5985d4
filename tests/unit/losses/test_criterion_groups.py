"""The losses of query groups: what they are equal to, their faults, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_detr.config.load import load_config
from lora_detr.errors import NumericalError
from lora_detr.losses.config import (
    BranchLossConfig,
    CriterionConfig,
    DacLossConfig,
    HybridLossConfig,
    PrimaryLossConfig,
    TermWeights,
)
from lora_detr.losses.criterion import Criterion
from lora_detr.losses.normaliser import Normaliser
from lora_detr.losses.report import LossReport
from lora_detr.losses.stacking import stacked
from lora_detr.matchers import TopKConfig
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import EncoderOutput, Images, PaddedTargets, Prediction, QueryGroupOutput, Target
from tests.unit.losses.step_outputs import Step, make_step
from tests.unit.losses.test_criterion import cost_of
from tests.unit.matchers.random_problems import draw_targets

LAYERS, COUNTS = 2, [3, 0, 5]


def terms_of(report: LossReport, source: str) -> dict[tuple[int | None, str], tuple[float, float]]:
    """Return (value, weight) of each term of a source, by layer and kind."""
    return {
        (term.key.layer, term.key.kind): (term.value, term.weight)
        for term in report.terms()
        if term.key.source == source
    }


@pytest.mark.parametrize("classification", ["focal", "quality", "iou-aware"])
def test_dac_is_a_branch_whose_predictions_the_decoder_makes(classification: Any) -> None:
    """The same pairs and terms as one branch, also where a query serves two targets."""
    step = make_step(3, layers=LAYERS, branches=1, counts=COUNTS, queries=12, classes=2)
    assert step.branches is not None
    matcher = TopKConfig(k=6, threshold=0.2, positive_fraction=None)
    weights = TermWeights(classification=1.5, l1=3.0, giou=2.5)
    config = CriterionConfig(
        branch=BranchLossConfig(classification=classification, weights=weights),
        dac=DacLossConfig(classification=classification, weights=weights, matcher=matcher),
    )
    layers = tuple(Prediction(layer.logits[0], layer.boxes[0]) for layer in step.branches.layers)
    output = replace(step.output, groups=(QueryGroupOutput("dac", layers),))
    criterion = Criterion(LAYERS, config, ["branch0"], [matcher.build()])
    report = criterion(output, step.branches, step.targets, Normaliser(sum(COUNTS)))
    found = terms_of(report, "dac")
    assert len(found) == 3 * LAYERS
    assert found == {place: pytest.approx(term) for place, term in terms_of(report, "branch0").items()}


@pytest.mark.parametrize("copies", [1, 2, 6])
@pytest.mark.parametrize("classification", ["focal", "quality", "iou-aware"])
@pytest.mark.parametrize("rule", ["exact", "official"])
def test_hybrid_is_a_primary_path_with_repeated_targets(copies: int, classification: Any, rule: Any) -> None:
    """The targets stand in the batch once; what they give equals what a list of copies gives the primary path.

    Two objects on four ranks are few enough for the rules of the normaliser to differ.
    """
    step = make_step(5, layers=LAYERS, branches=0, counts=COUNTS, queries=20, classes=3)
    weights = TermWeights(classification=1.5, l1=3.0, giou=2.5)
    config = CriterionConfig(
        primary=PrimaryLossConfig(classification=classification, weights=weights),
        hybrid=HybridLossConfig(repeats=copies, weights=weights),
    )
    criterion = Criterion(LAYERS, config)
    layers = tuple(layer.prediction for layer in step.output.layers)
    output = replace(step.output, groups=(QueryGroupOutput("hybrid", layers),))
    report = criterion(output, None, step.targets, Normaliser(2, 4, rule))
    repeated = PaddedTargets.from_targets(
        [Target(one.boxes.repeat(copies, 1), one.labels.repeat(copies), one.image_id, (1, 1)) for one in step.images]
    )
    plain = criterion(step.output, None, repeated, Normaliser(2 * copies, 4, rule))
    found = terms_of(report, "hybrid")
    assert len(found) == 3 * LAYERS
    assert found == {place: pytest.approx(term) for place, term in terms_of(plain, "primary").items()}


def test_hybrid_queries_may_have_a_classification_of_their_own() -> None:
    step = make_step(5, layers=1, branches=0, counts=[2], queries=9, classes=3)
    output = replace(step.output, groups=(QueryGroupOutput("hybrid", (step.output.layers[0].prediction,)),))
    values = []
    for own in (None, "focal", "iou-aware"):
        hybrid = HybridLossConfig(classification=own)  # type: ignore[arg-type]
        report = Criterion(1, CriterionConfig(hybrid=hybrid))(output, None, step.targets, Normaliser(2))
        values.append(terms_of(report, "hybrid")[0, "class"][0])
    assert values[0] == values[1] != values[2]


def with_groups(
    preset: str, counts: list[int], branches: int, changes: dict[str, Any]
) -> tuple[Criterion, Step, list[Tensor]]:
    """Return the criterion of a preset, what a small detector with six layers gives it, and the leaves of that."""
    torch.manual_seed(0)
    whole = load_config(RunConfig, preset=preset).config
    backbone = {"kind": "timm", "name": "test_efficientnet", "strides": (16, 32), "weights": "none"}
    sizes = {"backbone": backbone, "decoder_layers": 6, "encoder_layers": 1, "hidden_dim": 32, "ffn_dim": 32}
    model = type(whole.model).model_validate(whole.model.model_dump() | sizes | changes)
    one = whole.branches[0]
    listed = [one.model_copy(update={"matcher": TopKConfig(k=k)}) for k in (2, 3, 4, 5, 6)[:branches]]
    config = whole.model_copy(update={"model": model, "branches": tuple(listed)})
    images, batch = draw_targets(counts, 10), len(counts)
    pixels = Images(torch.randn(batch, 3, 96, 96), torch.zeros(batch, 96, 96).bool(), torch.full((batch, 2), 96))
    output, side_car = config.build_model(10, load_weights=False).train()(pixels, images)
    leaves: list[Tensor] = []

    def leaf(prediction: Prediction) -> Prediction:
        parts = Prediction(prediction.logits.detach().requires_grad_(), prediction.boxes.detach().requires_grad_())
        leaves.extend((parts.logits, parts.boxes))
        return parts

    def proposals(encoder: EncoderOutput | None) -> EncoderOutput | None:
        return None if encoder is None else replace(encoder, prediction=leaf(encoder.prediction))

    output = replace(
        output,
        layers=tuple(replace(layer, prediction=leaf(layer.prediction)) for layer in output.layers),
        encoder=proposals(output.encoder),
        groups=tuple(
            replace(group, layers=tuple(map(leaf, group.layers)), encoder=proposals(group.encoder))
            for group in output.groups
        ),
    )
    side_car = replace(side_car, layers=tuple(map(leaf, side_car.layers)))
    step = Step(output, side_car, PaddedTargets.from_targets(images), images, {})
    return config.build_criterion(), step, leaves


per_groups = pytest.mark.parametrize(
    ("preset", "changes"),
    [
        pytest.param("relation-tiny-lora3", {}, id="denoising and hybrid"),
        pytest.param("deformable-tiny-lora3", {"hybrid": {"num_queries": 50}, "dac": True}, id="hybrid and dac"),
    ],
)


@per_groups
def test_at_most_1000_operations_with_query_groups(preset: str, changes: dict[str, Any]) -> None:
    """With six layers and three branches; about as many whatever the batch, its objects and the branches."""
    usual = cost_of(*with_groups(preset, [8, 8], 3, changes))
    assert usual.forward <= 1000
    assert usual.copies == 1
    for counts, branches in (([20] * 8, 3), ([8, 8], 1), ([8, 8], 5)):
        found = cost_of(*with_groups(preset, counts, branches, changes))
        assert abs(found.forward - usual.forward) <= 0.1 * usual.forward
        assert abs(found.backward - usual.backward) <= 0.1 * usual.backward
        assert found.copies == 1


@per_groups
def test_every_stack_is_made_once(preset: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary path and each group, though matching and losses both read them."""
    made: list[int] = []

    def counting(predictions: Sequence[Prediction]) -> Prediction:
        made.append(len(predictions))
        return stacked(predictions)

    monkeypatch.setattr("lora_detr.losses.criterion.stacked", counting)
    criterion, step, _ = with_groups(preset, [2, 1], 1, changes)
    criterion(step.output, step.branches, step.targets, Normaliser(3))
    assert made == [6] * (1 + len(step.output.groups))
    assert len(step.output.groups) == 2


@per_groups
@pytest.mark.parametrize("counts", [[0, 0], [0, 3]])
def test_query_groups_and_empty_images_n07(preset: str, changes: dict[str, Any], counts: list[int]) -> None:
    """Every tensor of every group takes part, so that no rank waits for a gradient."""
    criterion, step, leaves = with_groups(preset, counts, 2, changes)
    report = criterion(step.output, step.branches, step.targets, Normaliser(sum(counts)))
    assert report.total.isfinite() and report.values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(report.total, leaves))
    boxes = [term.value for term in report.terms() if term.key.kind != "class"]
    assert any(boxes) == any(counts)


@pytest.mark.parametrize("group", ["hybrid queries at layer 4", "hybrid encoder"])
def test_a_cost_of_hybrid_queries_that_is_not_finite_n06(group: str) -> None:
    criterion, step, _ = with_groups("relation-tiny-lora3", [2, 2], 1, {})
    (hybrid,) = [one for one in step.output.groups if one.name == "hybrid"]
    assert hybrid.encoder is not None
    spoilt = hybrid.layers[4].boxes if "layer" in group else hybrid.encoder.prediction.boxes
    with torch.no_grad():
        spoilt[1] = math.nan
    with pytest.raises(NumericalError, match=f"{group} is not finite for image 1 ") as caught:
        criterion(step.output, step.branches, step.targets, Normaliser(4))
    assert (caught.value.exit_code, caught.value.code) == (6, "N06")
