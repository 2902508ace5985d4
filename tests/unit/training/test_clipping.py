"""Bounding the gradient as a whole, or that of the branches and that of all else one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.recipe.loaders import Splits
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.run_directory import RunDirectory
from lora_detr.runs.rehearsal import rehearse
from lora_detr.structures import Batch
from lora_detr.training.nonfinite import NonFiniteLossError
from lora_detr.training.seeding import seed_everything
from lora_detr.training.step import Stepper
from lora_detr.training.trainer import Trainer
from tests import small_runs

LIMIT = 0.1
APART = "train.optimizer.clip=apart"


def settings(*overrides: str) -> RunConfig:
    return small_runs.config(*small_runs.WITHOUT_CHANCE, *overrides)


@pytest.fixture(scope="module")
def splits(shapes_tiny: Path) -> Splits:
    return small_runs.splits_of(shapes_tiny, settings())


@pytest.fixture(scope="module")
def batches(splits: Splits) -> list[Batch]:
    places = small_runs.with_objects(splits)
    return [small_runs.batch_of(splits, settings(), places[i : i + 1]) for i in range(2)]


def stepper(splits: Splits, *overrides: str) -> Stepper:
    return small_runs.stepper(settings(*overrides), splits.categories.num_classes)


def gradients(one: Stepper) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in one.model.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def length(found: dict[str, Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in found.values()]).norm())


def test_without_a_limit_both_ways_give_the_same_gradient(splits: Splits, batches: list[Batch]) -> None:
    together = stepper(splits, "train.optimizer.clip_norm=null")
    apart = stepper(splits, "train.optimizer.clip_norm=null", APART)
    results = [one(batches, 0) for one in (together, apart)]
    assert results[0].loss == results[1].loss
    assert results[0].gradient_norm == pytest.approx(results[1].gradient_norm, rel=1e-5)
    for (name, first), second in zip(gradients(together).items(), gradients(apart).values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6, msg=name)


def test_each_part_is_bounded_by_itself(splits: Splits, batches: list[Batch]) -> None:
    """The branches' gradient alone, as if nothing else had a loss, and the rest alone, both bounded, then added."""
    limit = f"train.optimizer.clip_norm={LIMIT}"
    whole = stepper(splits, limit, APART)
    others = stepper(splits, limit, "loss.branch.factor=0")
    silent = [
        f"loss.{part}.weights.{kind}=0" for part in ("primary", "encoder") for kind in ("classification", "l1", "giou")
    ]
    branches = stepper(splits, limit, *silent)
    for one in (whole, others, branches):
        result = one(batches, 0)
        assert result.gradient_norm > LIMIT
    own = [gradients(one) for one in (others, branches)]
    assert [length(found) for found in own] == pytest.approx([LIMIT, LIMIT], rel=1e-3)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradient, own[0][name] + own[1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_step_without_branches_is_bounded_as_ever(splits: Splits, batches: list[Batch]) -> None:
    plain = ("model.dropout=0.0", "branches=[]")
    ways = [
        small_runs.stepper(small_runs.config(*plain, *more), splits.categories.num_classes) for more in ((), (APART,))
    ]
    for one in ways:
        one(batches, 0)
    for (name, first), second in zip(gradients(ways[0]).items(), gradients(ways[1]).values(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7, msg=name)


def test_a_rehearsal_leaves_nothing_to_the_first_step(splits: Splits, batches: list[Batch], tmp_path: Path) -> None:
    """It takes the passes of a step; the step's own gradient must not contain them."""
    config = settings(APART)
    found = []
    for rehearsals in (0, 2):
        seed_everything(config.train.seed)
        model = config.build_model(splits.categories.num_classes, load_weights=False)
        trainer = Trainer(config, splits, model, RunDirectory(tmp_path), small_runs.ALONE, small_runs.Lines())
        trainer.model.train()
        for _ in range(rehearsals):
            assert rehearse(trainer) is not None
        trainer.stepper(batches, 0)
        found.append(gradients(trainer.stepper))
    assert found[0]
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_a_matching_that_fails_ends_the_step_in_either_way(splits: Splits, batches: list[Batch]) -> None:
    one = stepper(splits, APART)
    with torch.no_grad():
        one.model.get_parameter("detector.heads.classes.1.bias").fill_(torch.nan)
    with pytest.raises(NonFiniteLossError) as caught:
        one(batches, 0)
    assert caught.value.code == "N06"
    assert not one.optimizer.state
