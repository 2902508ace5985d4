"""Steps of training: without branches those of a plain loop, in every tensor; with branches their terms beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from lora_detr.branches import AuxiliaryBranches, BranchedDetector, LoRABranch
from lora_detr.losses.config import CriterionConfig
from lora_detr.losses.criterion import Criterion
from lora_detr.matchers import TopK
from lora_detr.models.huggingface import HuggingFaceDetector
from lora_detr.structures import Batch
from lora_detr.training.nonfinite import NonFiniteLossError
from lora_detr.training.step import Stepper
from tests import huggingface_models, small_runs
from tests.unit.models.huggingface.test_detector import EMPTY, images_of, targets


def batches(kind: str) -> list[Batch]:
    """Return a batch for each step: objects on both images, on one, on none, and on both again."""
    objects = [targets(), [targets()[0], EMPTY], [EMPTY, EMPTY], targets()]
    images = [images_of(kind) for _ in objects]
    shifted = [replace(one, pixels=one.pixels + 0.1 * i) for i, one in enumerate(images)]
    return [Batch(one, tuple(given)) for one, given in zip(shifted, objects, strict=True)]


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-3, weight_decay=0.1)


def stepper(kind: str, count: int) -> Stepper:
    torch.manual_seed(0)
    detector = HuggingFaceDetector(huggingface_models.build(kind))
    ffn = detector.ffn(0)
    sizes = (detector.num_layers, ffn.linear1.in_features, ffn.linear1.out_features, 4)
    branches = [LoRABranch(*sizes, "xavier") for _ in range(count)]
    model = BranchedDetector(detector, AuxiliaryBranches(branches)).train()
    names = [f"branch{i}" for i in range(count)]
    criterion = Criterion(detector.num_layers, CriterionConfig(), names, [TopK([4 - i]) for i in range(count)])
    config = small_runs.config("train.optimizer.clip_norm=null")
    return Stepper(model, criterion, optimizer_of(model.parameters()), config, small_runs.ALONE)


@pytest.mark.parametrize("kind", huggingface_models.CONFIGS)
def test_without_branches_it_is_a_plain_loop_in_every_tensor(kind: str) -> None:
    ours = stepper(kind, 0)
    torch.manual_seed(7)
    losses = [ours([batch], i).loss for i, batch in enumerate(batches(kind))]
    alone = huggingface_models.build(kind).train()
    optimizer = optimizer_of(alone.parameters())
    torch.manual_seed(7)
    expected = []
    for batch in batches(kind):
        optimizer.zero_grad()
        loss = huggingface_models.own_loss(alone, batch.images, batch.targets)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == expected
    found = ours.model.detector.model.state_dict()  # type: ignore[union-attr, operator]
    for name, tensor in alone.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", huggingface_models.CONFIGS)
def test_branches_add_their_terms_and_train(kind: str) -> None:
    ours = stepper(kind, 3)
    before = [parameter.clone() for parameter in ours.model.branches.parameters()]  # type: ignore[union-attr, operator]
    result = ours([batches(kind)[0]], 0)
    names = {str(term.key) for term in result.terms}
    wanted = {f"branch{i}/layer{j}/{kind}" for i in range(3) for j in range(3) for kind in ("class", "l1", "giou")}
    assert wanted <= names
    assert {f"primary/layer2/{kind}" for kind in ("class", "l1", "giou")} <= names
    assert all(math.isfinite(term.value) for term in result.terms)
    assert sum(term.weight * term.value for term in result.terms) == pytest.approx(result.loss, rel=1e-4)
    changed = [not torch.equal(old, new) for old, new in zip(before, ours.model.branches.parameters(), strict=True)]  # type: ignore[union-attr, operator]
    assert all(changed)


@pytest.mark.parametrize("kind", ["deformable_detr", "lw_detr"])
def test_a_step_of_micro_batches_is_their_mean(kind: str) -> None:
    """The same batch twice is the batch once."""
    once, twice = stepper(kind, 2), stepper(kind, 2)
    batch = batches(kind)[0]
    one, two = once([batch], 0), twice([batch, batch], 0)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
    assert [term.value for term in two.terms] == pytest.approx([term.value for term in one.terms], rel=1e-5)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("kind", huggingface_models.CONFIGS)
def test_pixels_that_are_not_a_number_end_the_step_by_name(kind: str, count: int) -> None:
    ours = stepper(kind, count)
    batch = batches(kind)[0]
    batch.images.pixels[1] = math.nan
    before = [parameter.clone() for parameter in ours.model.parameters()]
    with pytest.raises(NonFiniteLossError) as caught:
        ours([batch], 5)
    assert caught.value.code in ("N01", "N06")
    assert "image" in caught.value.message
    same: Sequence[bool] = [torch.equal(old, new) for old, new in zip(before, ours.model.parameters(), strict=True)]
    assert all(same)
