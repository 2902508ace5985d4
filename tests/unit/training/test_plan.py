"""Steps and epochs, also of a run that goes on with another batch."""

from __future__ import annotations

import json

import pytest

from lora_detr.training.plan import Plan

PLAN = Plan(steps_per_epoch=10, epochs=4, max_steps=None, global_batch=8)


def test_a_run_that_was_never_changed() -> None:
    assert (PLAN.total_steps, PLAN.length) == (40, 40)
    assert [PLAN.epoch(step) for step in (0, 9, 10, 39)] == [0, 0, 1, 3]
    assert [PLAN.place(step) for step in (0, 9, 10, 39)] == [0, 9, 0, 9]
    assert [step for step in range(1, 41) if PLAN.is_end(step, 2)] == [20, 40]


def test_the_limit_of_steps_counts_only_where_it_comes_first() -> None:
    assert Plan(10, 4, 25, 8).total_steps == 25
    assert Plan(10, 4, 99, 8).total_steps == 40


def test_the_same_batch_goes_on_as_it_was() -> None:
    assert PLAN.resume(json.loads(json.dumps(PLAN.to_json())), 13) == PLAN
    assert PLAN.resume(None, 13) == PLAN  # a checkpoint that says nothing of it


@pytest.mark.parametrize(
    ("steps", "batch", "place"),
    [(5, 16, 3), (20, 4, 10), (10, 8, 5), (3, 32, 2), (1, 80, 1)],
    ids=["double", "half", "same", "four times", "an epoch in one step"],
)
def test_another_batch_goes_on_in_the_same_epoch_c08(steps: int, batch: int, place: int) -> None:
    """After 25 steps of 8 images the run is in its third epoch and has seen 40 images of it."""
    other = Plan(steps, 4, None, batch).resume(PLAN.to_json(), 25)
    seen_all = place == steps
    assert other.epoch(25) == (3 if seen_all else 2)
    assert other.place(25) == (0 if seen_all else place)
    assert other.total_steps - 25 == 2 * steps - place
    # A second change starts from where the first one has led.
    back = PLAN.resume(other.to_json(), 25)
    assert (back.epoch(25), back.place(25)) == ((3, 0) if seen_all else (2, -(-place * batch // 8)))


def test_at_the_end_of_an_epoch_nothing_is_left_over() -> None:
    other = Plan(7, 4, None, 12).resume(PLAN.to_json(), 20)
    assert (other.epoch(20), other.place(20), other.is_end(20)) == (2, 0, True)
    assert other.total_steps == 20 + 14
    assert other.length == 28
