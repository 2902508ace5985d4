"""Groups of images that show almost the same, and a choice of whole groups."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lora_detr.data.twins import DISTANCE, chosen_groups, groups_of


def groups_by_hand(hashes: list[int]) -> list[int]:
    """Compare every pair, and join until nothing changes."""
    group = list(range(len(hashes)))
    for _ in hashes:
        for i, first in enumerate(hashes):
            for j, second in enumerate(hashes):
                if (first ^ second).bit_count() <= DISTANCE:
                    group[i] = group[j] = min(group[i], group[j])
    ranks = {each: rank for rank, each in enumerate(dict.fromkeys(group))}
    return [ranks[each] for each in group]


def test_groups_are_those_of_all_pairs() -> None:
    dice = random.Random(0)
    seeds = [dice.getrandbits(64) for _ in range(8)] + [0, 2**64 - 1]
    hashes = []
    for _ in range(60):
        value = dice.choice(seeds)
        for _ in range(dice.randrange(7)):
            value ^= 1 << dice.randrange(64)
        hashes.append(value)
    assert groups_of(hashes).tolist() == groups_by_hand(hashes)


def test_near_ones_are_joined_in_chains_and_others_are_not() -> None:
    assert groups_of([0, 0b111, 0b111111, 1 << 63, 0, 0b1111 << 20]).tolist() == [0, 0, 0, 0, 0, 1]
    assert groups_of([0, 0b1111]).tolist() == [0, 1]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_a_choice_has_whole_groups_about_the_share_and_never_all(share: float) -> None:
    groups = np.array([0] * 5 + [1] * 3 + [*range(2, 42)])
    for seed in range(20):
        chosen = chosen_groups(groups, share, seed)
        assert 0 < chosen.sum() < len(groups)
        assert abs(chosen.sum() - share * len(groups)) <= 5
        assert {*groups[chosen]}.isdisjoint(groups[~chosen])
        assert (chosen == chosen_groups(groups, share, seed)).all()
    assert (chosen_groups(groups, 0.5, 0) != chosen_groups(groups, 0.5, 1)).any()


def test_the_smallest_group_is_taken_if_all_are_larger_than_the_share() -> None:
    assert chosen_groups(np.array([0, 0, 0, 1, 1]), 0.2, 0).tolist() == [False, False, False, True, True]
