"""The plain formulations of deformable sampling against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_detr.ops.sampling import bag_sampling, grid_sampling

Problem = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]


def problem(
    seed: int,
    shapes: list[tuple[int, int]],
    *,
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    depth: int = 3,
    points: int = 4,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Draw a problem; a third of the points lies outside, some of them far."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch, tokens, heads, depth, generator=generator, dtype=dtype)
    size = (batch, queries, heads, len(shapes), points)
    locations = 0.5 + 0.5 * torch.randn(*size, 2, generator=generator, dtype=dtype)
    weights = torch.rand(size, generator=generator, dtype=dtype)
    return value, shapes, locations, weights


def gradients(sample: object, of: Problem) -> list[Tensor]:
    """Return result and gradients."""
    value, shapes, locations, weights = of
    leaves = [part.clone().requires_grad_() for part in (value, locations, weights)]
    out = sample(leaves[0], shapes, leaves[1], leaves[2])  # type: ignore[operator]
    factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return [out, *torch.autograd.grad((out * factor).sum(), leaves)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    queries=st.integers(1, 5),
    heads=st.integers(1, 3),
    depth=st.integers(1, 5),
    points=st.integers(1, 4),
)
def test_both_give_the_same_with_their_gradients(
    seed: int, shapes: list[tuple[int, int]], batch: int, queries: int, heads: int, depth: int, points: int
) -> None:
    of = problem(seed, shapes, batch=batch, queries=queries, heads=heads, depth=depth, points=points)
    for found, expected in zip(gradients(bag_sampling, of), gradients(grid_sampling, of), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_single_precision_agrees_to_its_rounding() -> None:
    of = problem(0, [(40, 60), (20, 30)], queries=50, dtype=torch.float32)
    for found, expected in zip(gradients(bag_sampling, of), gradients(grid_sampling, of), strict=True):
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "place", [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.125, 0.875), (-0.125, 0.5), (1.125, 0.5), (9, -9)]
)
def test_centres_borders_and_places_outside(place: tuple[float, float]) -> None:
    """Where an interpolation weight is exactly 0 or 1, or a neighbour lies outside."""
    value, shapes, locations, weights = problem(0, [(4, 4)])
    locations = torch.tensor(place, dtype=torch.float64).expand(locations.shape).contiguous()
    found, expected = (sample(value, shapes, locations, weights) for sample in (bag_sampling, grid_sampling))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_gradients_are_those_of_finite_differences() -> None:
    value, shapes, locations, weights = problem(3, [(3, 2), (1, 2)], batch=1, queries=2, points=2, depth=2)
    leaves = [part.requires_grad_() for part in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: bag_sampling(v, shapes, p, w), leaves)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(wanted: tuple[bool, ...]) -> None:
    value, shapes, locations, weights = problem(0, [(3, 4)])
    _, *expected = gradients(bag_sampling, (value, shapes, locations, weights))
    leaves = [part.clone().requires_grad_(want) for part, want in zip((value, locations, weights), wanted, strict=True)]
    out = bag_sampling(leaves[0], shapes, leaves[1], leaves[2])
    factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    (found,) = torch.autograd.grad((out * factor).sum(), [leaf for leaf in leaves if leaf.requires_grad])
    assert torch.equal(found, expected[wanted.index(True)])


@pytest.mark.parametrize("empty", ["batch", "queries"])
@pytest.mark.parametrize("sample", [bag_sampling])
def test_nothing_to_sample(empty: str, sample: object) -> None:
    of = problem(0, [(3, 4)], **{empty: 0})  # type: ignore[arg-type]
    out, *grads = gradients(sample, of)
    assert out.shape == (of[0].shape[0], of[2].shape[1], 6)
    assert [grad.shape for grad in grads] == [of[0].shape, of[2].shape, of[3].shape]
    assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_place_that_is_not_finite_spoils_its_query_and_nothing_else(bad: float) -> None:
    value, shapes, locations, weights = problem(0, [(3, 4), (2, 2)], dtype=torch.float32)
    expected = bag_sampling(value, shapes, locations, weights)
    locations[0, 1, 0, 1, 2, 0] = bad
    found = bag_sampling(value, shapes, locations, weights)
    assert found[0, 1, :3].isfinite().all() == (bad == 1e30)
    found[0, 1, :3] = expected[0, 1, :3]
    assert torch.equal(found, expected)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    of = problem(0, [(30, 40), (15, 20)], queries=100, heads=8, depth=32, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(gradients(bag_sampling, of))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
