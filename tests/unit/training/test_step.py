"""One optimiser step: its gradient, its finite check, and what it copies to the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.errors import NumericalError
from lora_detr.ops.host import HostCopies
from lora_detr.recipe.loaders import Splits
from lora_detr.structures import Batch
from lora_detr.training.nonfinite import NonFiniteLossError
from lora_detr.training.step import MAX_SKIPPED, Stepper
from tests import small_runs

SETTINGS = small_runs.config(*small_runs.WITHOUT_CHANCE, "train.optimizer.clip_norm=null")
HOST_COPIES = 3


@pytest.fixture(scope="module")
def splits(shapes_tiny: Path) -> Splits:
    return small_runs.splits_of(shapes_tiny, SETTINGS)


@pytest.fixture
def stepper(splits: Splits) -> Stepper:
    return small_runs.stepper(SETTINGS, splits.categories.num_classes)


@pytest.fixture
def batch(splits: Splits) -> Batch:
    return small_runs.batch_of(splits, SETTINGS, small_runs.with_objects(splits)[:2])


def weights(stepper: Stepper) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}


def changed(stepper: Stepper, before: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in stepper.model.state_dict().items() if not torch.equal(tensor, before[name])]


def gradients(stepper: Stepper) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in stepper.model.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def spoil_gradient(stepper: Stepper, value: float) -> torch.utils.hooks.RemovableHandle:
    """Give one weight of a branch a gradient of ``value``."""
    parameter = stepper.model.get_parameter("branches.members.0.layers.0.a1")
    return parameter.register_hook(lambda gradient: torch.full_like(gradient, value))


def test_a_step_updates_every_parameter_and_reports_every_term(stepper: Stepper, batch: Batch) -> None:
    before = weights(stepper)
    result = stepper([batch], 0)
    trained = {name for name, parameter in stepper.model.named_parameters() if parameter.requires_grad}
    assert set(changed(stepper, before)) == trained
    names = [str(term.key) for term in result.terms]
    sources = ["primary", "branch0", "branch1", "branch2"]
    expected = [f"{source}/layer{i}/{kind}" for source in sources for i in (0, 1) for kind in ("class", "l1", "giou")]
    assert names == [*expected, "encoder/class", "encoder/l1", "encoder/giou"]
    assert result.loss == pytest.approx(sum(term.value * term.weight for term in result.terms), rel=1e-5)
    norm = torch.stack([gradient.norm() for gradient in gradients(stepper).values()]).norm()
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    assert not result.skipped


def test_the_gradient_is_scaled_down_to_the_limit(splits: Splits, batch: Batch) -> None:
    settings = small_runs.config(*small_runs.WITHOUT_CHANCE, "train.optimizer.clip_norm=0.1")
    stepper = small_runs.stepper(settings, splits.categories.num_classes)
    assert stepper([batch], 0).gradient_norm > 0.1
    norm = torch.stack([gradient.norm() for gradient in gradients(stepper).values()]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-3)


def test_at_most_three_copies_to_the_host(stepper: Stepper, batch: Batch) -> None:
    stepper([batch], 0)
    before = HostCopies.count
    stepper([batch], 1)
    assert 1 <= HostCopies.count - before <= HOST_COPIES


def test_a_loss_that_is_not_finite_stops_before_the_update_n01(stepper: Stepper, batch: Batch) -> None:
    # The primary path stays finite, so that matching still works and the loss is what fails.
    with torch.no_grad():
        stepper.model.get_parameter("branches.members.1.layers.1.b2").fill_(float("nan"))
    before = weights(stepper)
    with pytest.raises(NonFiniteLossError) as caught:
        stepper([batch], 17)
    error = caught.value
    ids = [target.image_id for target in batch.targets]
    assert error.exit_code == 6
    assert error.code == "N01"
    # Three of the 27 terms: those of one branch at one layer.
    assert error.message == f"step 17: loss is not finite: branch1/layer1/class is nan (3 of 27 terms); images {ids}"
    (rank,) = error.seen.ranks
    (seen,) = rank.batches
    assert seen.image_ids == tuple(ids)
    bad = {str(term.key) for term in seen.wrong}
    assert bad == {"branch1/layer1/class", "branch1/layer1/l1", "branch1/layer1/giou"}
    assert set(changed(stepper, before)) == {"branches.members.1.layers.1.b2"}  # only NaN differs from itself


def test_in_any_batch_of_an_accumulated_step_n01(stepper: Stepper, splits: Splits, batch: Batch) -> None:
    images = replace(batch.images, pixels=batch.images.pixels * float("inf"))
    before = weights(stepper)
    with pytest.raises(NumericalError) as caught:
        stepper([batch, replace(batch, images=images)], 3)
    assert caught.value.exit_code == 6
    assert changed(stepper, before) == []
    assert isinstance(caught.value, NonFiniteLossError)
    (rank,) = caught.value.seen.ranks
    assert [seen.is_wrong for seen in rank.batches] == [False, True]
    assert caught.value.message.endswith("; micro-batch 2 of 2")
    assert all(term.value > 0 for term in rank.batches[0].terms)


def test_a_sum_that_is_too_large_is_named_n01(stepper: Stepper, batch: Batch) -> None:
    """Every term is finite, and their sum is not."""
    weights = stepper.config.loss.primary.weights.model_copy(update={"l1": 3e38, "giou": 3e38})
    rows = stepper.criterion.rows
    rows["primary"] = replace(rows["primary"], weights=weights)
    with pytest.raises(NonFiniteLossError, match="though its terms are: their sum is too large"):
        stepper([batch], 0)


def test_a_matching_cost_that_is_not_finite_stops_before_the_update_n06(stepper: Stepper, batch: Batch) -> None:
    with torch.no_grad():
        stepper.model.get_parameter("detector.heads.classes.1.bias").fill_(float("nan"))
    before = weights(stepper)
    with pytest.raises(NonFiniteLossError, match="primary path at layer 1") as caught:
        stepper([batch], 0)
    assert (caught.value.exit_code, caught.value.code) == (6, "N06")
    assert caught.value.seen.first.fault is not None
    assert caught.value.seen.first.fault.image_id == batch.targets[0].image_id
    # Processes without a fault wait for the gradients of this one, so all parameters must have one.
    trained = {name for name, parameter in stepper.model.named_parameters() if parameter.requires_grad}
    assert gradients(stepper).keys() == trained
    assert set(changed(stepper, before)) == {"detector.heads.classes.1.bias"}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_skips_the_update_n02(stepper: Stepper, batch: Batch, value: float) -> None:
    hook = spoil_gradient(stepper, value)
    before = weights(stepper)
    result = stepper([batch], 0)
    assert result.skipped
    assert not torch.isfinite(torch.tensor(result.gradient_norm))
    assert torch.isfinite(torch.tensor(result.loss))
    assert changed(stepper, before) == []
    assert len(stepper.optimizer.state) == 0  # the moments have not seen it either
    assert (stepper.skipped, stepper.skipped_in_a_row) == (1, 1)
    hook.remove()
    assert not stepper([batch], 1).skipped
    assert changed(stepper, before)
    assert (stepper.skipped, stepper.skipped_in_a_row) == (1, 0)


def test_ten_skipped_updates_in_a_row_end_the_run_n02(stepper: Stepper, batch: Batch) -> None:
    spoil_gradient(stepper, float("inf"))
    before = weights(stepper)
    for step in range(MAX_SKIPPED - 1):
        assert stepper([batch], step).skipped
    with pytest.raises(NumericalError, match="10th time in a row") as caught:
        stepper([batch], 9)
    assert (caught.value.exit_code, caught.value.code) == (6, "N02")
    assert changed(stepper, before) == []


def test_a_batch_without_objects_trains_on_background_alone_n07(stepper: Stepper, batch: Batch) -> None:
    empty = tuple(replace(target, boxes=target.boxes[:0], labels=target.labels[:0]) for target in batch.targets)
    result = stepper([replace(batch, targets=empty)], 0)
    assert not result.skipped
    for term in result.terms:
        assert term.value > 0 if term.key.kind == "class" else term.value == 0, term.key
    trained = {name for name, parameter in stepper.model.named_parameters() if parameter.requires_grad}
    assert gradients(stepper).keys() == trained  # losses on empty sets keep the graph


def test_bf16_runs_the_same_step(splits: Splits, batch: Batch) -> None:
    settings = small_runs.config(*small_runs.WITHOUT_CHANCE, "train.precision=bf16")
    full = small_runs.stepper(SETTINGS, splits.categories.num_classes)([batch], 0)
    half = small_runs.stepper(settings, splits.categories.num_classes)([batch], 0)
    assert half.loss == pytest.approx(full.loss, rel=0.05)
    assert half.loss != full.loss
