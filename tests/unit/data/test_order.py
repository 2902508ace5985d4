"""Batches of images of a like shape: what an epoch consists of stays, only what comes together changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lora_detr.data.order import EpochSampler, grouped, repeat_factors
from lora_detr.recipe.loaders import Splits, train_loader
from lora_detr.structures import Batch
from tests import small_runs
from tests.unit.data.coco.coco_files import content, load

# One in three is of group 1; 13 of 40.
GROUPS = [int(index % 3 == 1) for index in range(40)]


def sampler(rank: int, world: int, batch: int, *, drop_last: bool = True, **changes: object) -> EpochSampler:
    options = {"groups": GROUPS, **changes}
    return EpochSampler(
        40, batch_size=batch, shuffle=True, rank=rank, world_size=world, seed=5, drop_last=drop_last, **options
    )  # type: ignore[arg-type]


def mixed(batches: list[list[int]]) -> list[int]:
    """Return the places of the batches that have indices of both groups."""
    return [place for place, batch in enumerate(batches) if len({GROUPS[index] for index in batch}) > 1]


def test_groups_fill_batches_in_turn_and_the_rest_comes_last() -> None:
    groups = [0, 1, 0, 1, 0, 0, 1, 0, 1]
    # 0 and 2 are full first, then 1 and 3, 4 and 5; 7 and 6 are left; 8 fills no batch and stays behind.
    assert grouped(range(9), groups, 2) == [0, 2, 1, 3, 4, 5, 7, 6, 8]
    assert grouped([1, 8, 0, 3, 5, 2, 7], groups, 3) == [1, 8, 3, 0, 5, 2, 7]
    assert grouped([3, 0, 1, 2], groups, 8) == [3, 0, 1, 2]
    assert grouped([], groups, 2) == []


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 20, 50])
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_has_the_same_images_as_without_groups(batch: int, drop_last: bool) -> None:
    with_groups, without = (
        sampler(0, 1, batch, drop_last=drop_last),
        sampler(0, 1, batch, drop_last=drop_last, groups=None),
    )
    for epoch in range(3):
        with_groups.set_epoch(epoch)
        without.set_epoch(epoch)
        found, expected = list(with_groups), list(without)
        assert list(map(len, found)) == list(map(len, expected))
        times = Counter(index for one in found for index in one)
        assert times == Counter(index for one in expected for index in one)
        assert max(times.values()) == 1


@pytest.mark.parametrize("batch", [2, 3, 4, 7])
def test_at_most_the_last_batch_is_of_both_groups(batch: int) -> None:
    without = sampler(0, 1, batch, groups=None)
    one = sampler(0, 1, batch)
    for epoch in range(5):
        one.set_epoch(epoch)
        without.set_epoch(epoch)
        assert mixed(list(one)) in ([], [len(one) - 1])
        assert len(mixed(list(without))) > 2


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_the_images_of_a_step_do_not_depend_on_ranks(world: int, drop_last: bool) -> None:
    single = list(sampler(0, 1, 2 * world, drop_last=drop_last))
    ranks = [list(sampler(rank, world, 2, drop_last=drop_last)) for rank in range(world)]
    assert {len(own) for own in ranks} == {len(single)}
    for whole, *parts in zip(single, *ranks, strict=True):
        assert len({len(part) for part in parts}) == 1
        joined = [index for part in parts for index in part]
        assert joined[: len(whole)] == whole


def test_a_resumed_epoch_goes_on_with_the_same_batches_and_epochs_differ() -> None:
    one = sampler(1, 2, 3)
    whole = list(one)
    one.set_epoch(0, start=2)
    assert list(one) == whole[2:]
    assert len(one) == len(whole) - 2
    one.set_epoch(1)
    assert list(one) != whole


def test_a_small_group_is_left_out_no_more_often() -> None:
    lonely = [int(index == 0) for index in range(40)]
    one = sampler(0, 1, 7, groups=lonely)
    left_out = 0
    for epoch in range(200):
        one.set_epoch(epoch)
        left_out += 0 not in {index for batch in one for index in batch}
    assert 10 < left_out < 40  # 5 of 40 are, so 25 times of 200


def test_as_many_groups_as_samples_are_wanted() -> None:
    with pytest.raises(ValueError, match="groups of 2"):
        sampler(0, 1, 2, groups=[0, 1])


def shapes_of(batch: Batch) -> set[bool]:
    return {target.original_size[0] > target.original_size[1] for target in batch.targets}


class TestTraining:
    """The setting reaches the loader of a run."""

    def test_sizes_come_from_the_annotation_file(self, shapes_tiny: Path) -> None:
        settings = small_runs.config("data.group_by_shape=true", "data.workers=0", "train.batch_size=2")
        splits = small_runs.splits_of(shapes_tiny, settings)
        tall = splits.train.records.heights > splits.train.records.widths
        assert 2 <= tall.sum() <= len(tall) - 2
        batches = list(train_loader(splits, settings, small_runs.ALONE))
        assert all(len(shapes_of(batch)) == 1 for batch in batches[:-1])
        plain = small_runs.config("data.workers=0", "train.batch_size=2")
        assert any(len(shapes_of(batch)) == 2 for batch in list(train_loader(splits, plain, small_runs.ALONE))[:-1])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_do_not_matter(self, workers: int, shapes_tiny: Path) -> None:
        settings = small_runs.config("data.group_by_shape=true", f"data.workers={workers}")
        loader = train_loader(small_runs.splits_of(shapes_tiny, settings), settings, small_runs.ALONE)
        found = [[target.image_id for target in batch.targets] for batch in loader]
        loader.close()
        assert found == [[loader.dataset.image_id(index) for index in batch] for batch in loader.sampler]

    def test_images_that_are_repeated_keep_their_group(self, tmp_path: Path) -> None:
        value = content(3)
        for row, (height, width) in zip(value["images"], ((30, 40), (40, 30), (30, 30)), strict=True):
            row["height"], row["width"] = height, width
        value["annotations"] = []
        split = load(tmp_path, value)
        settings = small_runs.config("data.group_by_shape=true", "data.workers=0")
        splits = Splits(split, None, split.categories, augment=False)
        groups = train_loader(splits, settings, small_runs.ALONE).sampler.groups
        assert groups is not None
        assert groups[:7] == [0, 1, 0, 0, 1, 0, 0]
        assert np.mean(groups) == pytest.approx(1 / 3, abs=0.01)


def test_rare_classes_are_repeated_by_the_root_of_the_median_share() -> None:
    # Of 8 images, class 5 is in 8, class 6 in 2 (images 0 and 1), class 7 in 1 (image 1, twice): the median share is
    # 2/8, so 5 asks for sqrt(0.25 / 1) < 1, 6 for 1 and 7 for sqrt(0.25 / 0.125) = sqrt(2).
    images = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 1, 1])
    classes = np.array([5] * 8 + [6, 6, 7, 7])
    found = repeat_factors(images, classes, 8)
    np.testing.assert_allclose(found, [1, 2**0.5, 1, 1, 1, 1, 1, 1])


def test_in_a_data_set_of_many_rare_classes_the_share_is_that_of_lvis() -> None:
    # Three classes in 1, 1 and 4 of 4,000 images: the median share is 1/4,000, below 0.001 = 4/4,000.
    found = repeat_factors(np.array([0, 1, 2, 3, 4, 5]), np.array([1, 2, 3, 3, 3, 3]), 4000)
    np.testing.assert_allclose(found[:3], [2, 2, 1])
    assert found[3:].max() == 1


def test_without_an_object_nothing_is_repeated() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert repeat_factors(nothing, nothing, 3).tolist() == [1, 1, 1]


def test_epochs_with_repeats_are_equally_long_and_repeat_in_proportion() -> None:
    repeats = [1.0] * 36 + [1.5, 2.0, 3.25, 1.0]  # 43.75 in total
    times: Counter[int] = Counter()
    for epoch in range(200):
        one = sampler(0, 1, 1, groups=None, repeats=repeats)
        one.set_epoch(epoch)
        drawn = [index for batch in one for index in batch]
        assert len(drawn) == one.batches_per_epoch == 44
        times.update(drawn)
    assert times[37] / 200 == pytest.approx(2, abs=0.1)
    assert times[38] / 200 == pytest.approx(3.25, abs=0.2)
    assert times[36] / 200 == pytest.approx(1.5, abs=0.15)
    # Two ranks share the epoch of one.
    ranks = [sampler(rank, 2, 1, groups=None, repeats=repeats) for rank in range(2)]
    together = [index for pair in zip(*ranks, strict=True) for batch in pair for index in batch]
    alone = sampler(0, 1, 2, groups=None, repeats=repeats)
    assert together == [index for batch in alone for index in batch]


def test_repeats_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="below 1"):
        sampler(0, 1, 1, groups=None, repeats=[0.5] * 40)
