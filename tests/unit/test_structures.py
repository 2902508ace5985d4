"""What crosses a module border: padding is counted, and everything on the way to a GPU can be pinned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_detr.data.loader import collate
from lora_detr.structures import Batch, PaddedTargets, Target


def batch() -> Batch:
    target = Target(torch.rand(2, 4), torch.tensor([1, 0]), 7, (5, 4))
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 8, (2, 7))
    return collate(
        [(torch.ones(3, 5, 4, dtype=torch.uint8), target), (torch.ones(3, 2, 7, dtype=torch.uint8), empty)], 4
    )


def test_padding_is_counted_from_sizes() -> None:
    images = batch().images
    assert images.count_padded() == int(images.padding.sum()) == 2 * 8 * 8 - 5 * 4 - 2 * 7


def test_all_tensors_of_a_batch_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch()
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    found = given.pin_memory()
    wanted = [given.images.pixels, given.images.padding, given.images.sizes]
    wanted += [tensor for target in given.targets for tensor in (target.boxes, target.labels)]
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in wanted}
    assert [target.image_id for target in found.targets] == [7, 8]
    assert torch.equal(found.images.pixels, given.images.pixels)
    assert torch.equal(found.targets[0].boxes, given.targets[0].boxes)


def test_targets_are_padded_to_the_largest_number() -> None:
    padded = PaddedTargets.from_targets(batch().targets)
    assert padded.counts == (2, 0)
    assert padded.mask.tolist() == [[True, True], [False, False]]
    assert padded.labels.tolist() == [[1, 0], [0, 0]]
    alone = PaddedTargets.from_targets(batch().targets[1:])
    assert (alone.mask.tolist(), tuple(alone.boxes.shape)) == ([[False]], (1, 1, 4))
