"""The best of many, with equal values by rising index."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_detr.ops.ranking import best_first


def _sorted(values: Tensor, count: int, largest: bool) -> tuple[Tensor, Tensor]:
    found = values.sort(dim=-1, descending=largest, stable=True)
    return found.values[..., :count], found.indices[..., :count]


@pytest.mark.parametrize("levels", [1, 3, 20, 10_000])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("largest", [True, False])
def test_it_is_a_stable_sort_cut_off(levels: int, count: int, largest: bool) -> None:
    values = (torch.rand(3, 2, 40) * levels).round() - levels // 2
    values[1, 0, ::4] = -0.0
    values[0, 0, ::3] = -torch.inf
    values[1, 1] = -torch.inf
    values[2, 0, 5] = torch.inf
    found, places = best_first(values, count, largest)
    expected, order = _sorted(values, count, largest)
    assert torch.equal(found, expected)
    assert torch.equal(places, order)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("many", [1, 3, 9])
def test_values_that_are_no_numbers_count_as_highest_and_places_stay_in_range(many: int, sign: int) -> None:
    values = torch.arange(10.0)
    values[:many] = torch.tensor(torch.nan).copysign(torch.tensor(float(sign)))
    found, places = best_first(values, 4)
    assert int(found.isnan().sum()) == min(many, 4)
    assert len(set(places.tolist())) == 4
    found, places = best_first(values, 4, largest=False)
    assert int(found.isnan().sum()) == max(many - 6, 0)
    assert len(set(places.tolist())) == 4


def test_every_place_of_a_constant_is_taken_in_order() -> None:
    assert best_first(torch.zeros(2, 20_000), 300)[1].tolist() == [list(range(300))] * 2
