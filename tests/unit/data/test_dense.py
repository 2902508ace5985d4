"""Strong augmentation: boxes stay on their objects, draws follow from the seed, and the schedule is that of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.data import dense
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.dense import Decoded, Dense
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import train_loader
from tests import small_runs

SIDE = 96


def picture(label: int, height: int = 60, width: int = 80, box: Sequence[int] = (20, 15, 50, 45)) -> Decoded:
    """Return a grey image with a rectangle that is bright in channel ``label`` only."""
    image = torch.full((3, height, width), 60, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 0
    image[label, y1:y2, x1:x2] = 255
    return image, torch.tensor([box], dtype=torch.float32), torch.tensor([label])


def extent(image: Tensor, label: int, least: int) -> tuple[list[int], int]:
    """Return the box of all pixels that are brighter in a channel than in the others, and their number."""
    pixels = image.int()
    others = [channel for channel in range(3) if channel != label]
    rows, columns = torch.nonzero(pixels[label] - pixels[others].amax(0) > least, as_tuple=True)
    if not len(rows):
        return [], 0
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1], len(rows)


def check(sample: Decoded, least: int = 80) -> int:
    """Assert that the boxes are those of the pixels, within the rounding of a resize; return how many there are."""
    image, boxes, labels = sample
    assert image.dtype == torch.uint8
    assert len(boxes) == len(labels)
    for label in range(3):
        found, number = extent(image, label, least)
        own = boxes[labels == label]
        if not len(own):
            # Dropped, since little of it is left.
            assert number <= 0.2 * 30 * 30 * 4
            continue
        assert len(own) == 1
        assert found
        difference = (own[0] - torch.tensor(found)).abs().max()
        assert difference <= 2.5, (label, own[0], found)
    return len(boxes)


def without_colours(side: int = SIDE) -> Dense:
    made = Dense(side)
    made.colours = torch.nn.Identity()  # type: ignore[assignment]
    return made


def others(index: int) -> Decoded:
    return picture(1 + index % 2, 40 + 7 * index, 90, (30, 10, 60, 35))


@pytest.mark.parametrize("seed", range(40))
def test_boxes_stay_on_their_objects_when_an_image_is_zoomed_and_cropped(seed: int) -> None:
    augmented = without_colours()(picture(0), others, 4, 0.7, seed)
    check(augmented)
    assert max(augmented[0].shape[-2:]) <= 4 * SIDE


@pytest.mark.parametrize("seed", range(40))
def test_boxes_stay_on_their_objects_in_an_image_of_four(seed: int) -> None:
    torch.manual_seed(seed)
    samples = [picture(0), picture(1, 50, 120), picture(2, 120, 70), picture(0, box=(0, 0, 0, 0))]
    samples[3] = (samples[3][0], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    augmented = without_colours()._mosaic(samples)
    assert augmented[0].shape == (3, SIDE, SIDE)
    check(augmented)


@pytest.mark.parametrize("seed", range(20))
def test_of_two_blended_images_all_objects_count(seed: int) -> None:
    torch.manual_seed(seed)
    first, other = picture(0, box=(2, 2, 30, 25)), picture(1, 120, 160, (100, 70, 150, 110))
    augmented = without_colours()._blended(first, other)
    assert augmented[0].shape == first[0].shape
    assert check(augmented, least=60) == 2


def test_colours_change_and_boxes_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_chance", lambda: False)
    made = Dense(SIDE)
    made.zoom = made.crop = torch.nn.Identity()  # type: ignore[assignment]
    sample = picture(0)
    found = [made(sample, others, 4, 0.7, seed) for seed in range(8)]
    assert any(not torch.equal(image, sample[0]) for image, _, _ in found)
    assert all(torch.equal(boxes, sample[1]) for _, boxes, _ in found)


@pytest.mark.parametrize("progress", [0.0, 0.039, 0.9, 1.0])
def test_at_both_ends_of_the_run_nothing_is_strong(progress: float) -> None:
    sample = picture(0)
    for seed in range(5):
        assert Dense(SIDE)(sample, others, 4, progress, seed) is sample


@pytest.mark.parametrize(("progress", "reads"), [(0.04, True), (0.49, True), (0.5, False), (0.89, False)])
def test_images_are_made_of_several_in_the_first_half(progress: float, reads: bool) -> None:
    asked: list[int] = []

    def read(index: int) -> Decoded:
        asked.append(index)
        return others(index)

    for seed in range(40):
        Dense(SIDE)(picture(0), read, 5, progress, seed)
    assert bool(asked) == reads
    assert set(asked) <= set(range(5))
    # Three for an image of four and one for a blended one, each every other time.
    assert not reads or len(asked) / 40 == pytest.approx(2, abs=0.7)


def test_draws_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (Dense(SIDE)(picture(0), others, 4, 0.2, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_images_that_cannot_be_read_are_left_out_and_empty_ones_are_fine() -> None:
    empty = (torch.zeros((3, 50, 50), dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for seed in range(20):
        image, boxes, labels = Dense(SIDE)(empty, lambda index: None, 4, 0.2, seed)
        assert image.ndim == 3
        assert (boxes.shape, labels.shape) == ((0, 4), (0,))


def test_a_large_photo_is_shrunk_before_anything_else() -> None:
    large = picture(0, 3000, 4000, (1000, 1000, 2500, 2000))
    for seed in range(4):
        image, _, _ = Dense(SIDE)(large, others, 4, 0.7, seed)
        assert max(image.shape[-2:]) <= 4 * SIDE


def dataset_of(data: Path, *overrides: str) -> CocoDataset:
    config = small_runs.config("data.train.augment=dense", *overrides)
    found = train_loader(small_runs.splits_of(data, config), config, World(0, 1, torch.device("cpu"))).dataset
    assert isinstance(found, CocoDataset)
    return found


def test_a_sample_depends_on_seed_epoch_and_image_alone(shapes_tiny: Path) -> None:
    one, two = dataset_of(shapes_tiny, "train.epochs=10"), dataset_of(shapes_tiny, "train.epochs=10")
    for index in range(4):
        two.sample(index, 3)
    for (pixels, target), (others_pixels, others_target) in ((one.sample(5, 2), two.sample(5, 2)),):
        assert torch.equal(pixels, others_pixels)
        assert torch.equal(target.boxes, others_target.boxes)
    assert not torch.equal(one.sample(5, 2)[0], one.sample(5, 3)[0])


@pytest.mark.parametrize(("override", "epochs"), [("train.epochs=10", 10), ("train.max_steps=9", 1.5)])
def test_the_schedule_is_a_share_of_the_run(override: str, epochs: float, shapes_tiny: Path) -> None:
    found = dataset_of(shapes_tiny, override)
    assert found.epochs == epochs  # of 12 images, 2 a step


def test_without_augmentation_an_image_is_the_same_in_every_epoch(shapes_tiny: Path) -> None:
    config = small_runs.config("data.train.augment=none", "data.train.scales=[64,96]")
    found = train_loader(small_runs.splits_of(shapes_tiny, config), config, small_runs.ALONE).dataset
    first = [found.sample(0, epoch)[0] for epoch in range(4)]
    assert all(torch.equal(first[0], other) for other in first[1:])
    assert max(first[0].shape[-2:]) >= 96
