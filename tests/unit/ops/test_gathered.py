"""Sampling by indexing gives what the operator gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lora_detr.ops.gathered import gathered_grid_sample


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4)])
def test_it_equals_the_operator_inside_and_outside_of_the_map(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, *size, generator=generator)
    grid = 3 * torch.rand(2, 6, 4, 2, generator=generator) - 1.5
    expected = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(gathered_grid_sample(maps, grid), expected, atol=1e-6, rtol=1e-5)


def test_another_setting_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="border"):
        gathered_grid_sample(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2), padding_mode="border")
