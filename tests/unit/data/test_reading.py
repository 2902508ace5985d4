"""Images that cannot be read: what stands for them, and that it depends on nothing but the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import BatchLoader, build_loader
from lora_detr.data.reading import Unreadable, read_sample
from lora_detr.data.transforms import TrainTransformConfig
from lora_detr.errors import DataError
from tests.unit.data.coco.coco_files import content, load, write_images

BROKEN = ("1.png", "2.png", "6.png")


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    """Seven images with ids 10 to 16, of which 11, 12 and 16 cannot be read."""
    value = content(7)
    write_images(tmp_path, value)
    for name, data in zip(BROKEN, (b"", b"<html>", b"\x89PNG\r\n"), strict=True):
        (tmp_path / name).write_bytes(data)
    return load(tmp_path, value, check_files=True)


def _dataset(split: CocoSplit) -> CocoDataset:
    config = TrainTransformConfig(scales=(24, 32), max_size=60, crop_scales=(40,), crop_range=(20, 35))
    return CocoDataset(split, config.build(), seed=3)


def _loader(split: CocoSplit, unreadable: Unreadable, **options: int | bool) -> BatchLoader:
    values = {"batch_size": 2, "shuffle": True, "rank": 0, "world_size": 1, "seed": 3, "workers": 0, "drop_last": False}
    return build_loader(_dataset(split), unreadable=unreadable, **{**values, **options})  # type: ignore[arg-type]


def test_the_next_readable_image_by_id_takes_the_place_d18(split: CocoSplit) -> None:
    dataset = _dataset(split)
    found = [read_sample(dataset, i, 0, "next") for i in range(7)]
    assert [read.sample[1].image_id for read in found] == [10, 13, 13, 13, 14, 15, 10]
    assert [sorted(read.unreadable) for read in found] == [[], [11, 12], [12], [], [], [], [16]]
    assert torch.equal(found[1].sample[0], dataset.sample(3, 0)[0])
    problem = found[6].unreadable[16]
    assert problem.code == "D18"
    assert "6.png (image id 16): the image cannot be read" in problem.text


def test_a_blank_image_keeps_its_id_d18(split: CocoSplit) -> None:
    pixels, target = read_sample(_dataset(split), 2, 0, "blank").sample
    assert (target.image_id, target.original_size, len(target.labels)) == (12, (30, 40), 0)
    assert torch.isfinite(pixels).all()


def test_an_error_unless_something_was_asked_to_stand_for_it_d18(split: CocoSplit) -> None:
    with pytest.raises(DataError, match=r"1\.png \(image id 11\)"):
        read_sample(_dataset(split), 1, 0)


def test_no_image_can_be_read_d18(split: CocoSplit) -> None:
    with pytest.raises(DataError, match=r"none of 3 images can be read; the first: .*2\.png") as caught:
        read_sample(_dataset(split.subset([11, 12, 16])), 1, 0, "next")
    assert (caught.value.code, caught.value.exit_code) == ("D18", 3)


def test_only_faults_of_an_image_are_skipped(split: CocoSplit) -> None:
    class Faulty(CocoDataset):
        def sample(self, index: int, epoch: int) -> tuple[Tensor, object]:  # type: ignore[override]
            raise DataError("no such category", code="D10")

    dataset = Faulty(split, _dataset(split).transform, seed=0)
    with pytest.raises(DataError, match="no such category"):
        read_sample(dataset, 0, 0, "next")


def _contents(loader: BatchLoader) -> list[tuple[int, float]]:
    found = []
    for batch in loader:
        sums = batch.images.pixels.double().sum((1, 2, 3)).tolist()
        found += [(target.image_id, one) for target, one in zip(batch.targets, sums, strict=True)]
    loader.close()
    return found


def test_what_takes_the_place_depends_on_neither_workers_nor_ranks_d18(split: CocoSplit) -> None:
    alone = _loader(split, "next", batch_size=4)
    expected = _contents(alone)
    assert {image_id for image_id, _ in expected} == {10, 13, 14, 15}
    assert sorted(alone.unreadable) == [11, 12, 16]
    with_workers = _loader(split, "next", batch_size=4, workers=2)
    assert _contents(with_workers) == expected
    assert with_workers.unreadable == alone.unreadable
    ranks = [_loader(split, "next", rank=rank, world_size=2) for rank in range(2)]
    parts = [_contents(loader) for loader in ranks]
    joined = [one for i in range(0, len(parts[0]), 2) for part in parts for one in part[i : i + 2]]
    assert [image_id for image_id, _ in joined][:7] == [image_id for image_id, _ in expected]
    assert ranks[0].unreadable | ranks[1].unreadable == alone.unreadable


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_as_many_batches_as_if_all_could_be_read_d18(split: CocoSplit, workers: int) -> None:
    loader = _loader(split, "blank", shuffle=False, workers=workers)
    assert [image_id for image_id, _ in _contents(loader)] == list(range(10, 17))
    assert sorted(loader.unreadable) == [11, 12, 16]
