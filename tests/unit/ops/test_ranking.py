"""The best of many, with equal values by rising index."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_detr.ops.ranking import best_first


def _sorted(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    found = values.sort(dim=-1, descending=True, stable=True)
    return found.values[..., :count], found.indices[..., :count]


@pytest.mark.parametrize("levels", [1, 3, 20, 10_000])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_it_is_a_stable_sort_cut_off(levels: int, count: int) -> None:
    values = (torch.rand(3, 2, 40) * levels).round()
    values[0, 0, ::3] = -torch.inf
    values[1, 1] = -torch.inf
    values[2, 0, 5] = torch.inf
    found, places = best_first(values, count)
    expected, order = _sorted(values, count)
    assert torch.equal(found, expected)
    assert torch.equal(places, order)


@pytest.mark.parametrize("many", [1, 3, 9])
def test_values_that_are_no_numbers_come_first_and_places_stay_in_range(many: int) -> None:
    values = torch.arange(10.0)
    values[:many] = torch.nan
    found, places = best_first(values, 4)
    assert int(found.isnan().sum()) == min(many, 4)
    assert len(set(places.tolist())) == 4


def test_every_place_of_a_constant_is_taken_in_order() -> None:
    assert best_first(torch.zeros(2, 20_000), 300)[1].tolist() == [list(range(300))] * 2
