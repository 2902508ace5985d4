"""Batches: padding, order, ranks, workers, and errors from workers."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_detr.data.coco.split import CocoSplit
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import BatchLoader, build_loader, collate
from lora_detr.data.order import EpochSampler
from lora_detr.data.transforms import EvalTransformConfig, TrainTransformConfig
from lora_detr.errors import DataError, WorkerError
from lora_detr.structures import Batch, Target
from tests import small_runs
from tests.unit.data.coco.coco_files import content, load, write_images


def _split(folder: Path, images: int = 7) -> CocoSplit:
    value = content(images)
    write_images(folder, value)
    return load(folder, value, check_files=True)


def _dataset(folder: Path, images: int = 7) -> CocoDataset:
    config = TrainTransformConfig(scales=(24, 32, 40), max_size=60, crop_scales=(40, 50), crop_range=(20, 35))
    return CocoDataset(_split(folder, images), config.build(), seed=3)


def _loader(dataset: CocoDataset, **options: int | bool | float) -> BatchLoader:
    values = {"batch_size": 2, "shuffle": True, "rank": 0, "world_size": 1, "seed": 3, "workers": 0, "drop_last": False}
    return build_loader(dataset, **{**values, **options})  # type: ignore[arg-type]


def _sampler(count: int, rank: int, world: int, batch: int, *, shuffle: bool, drop_last: bool = False) -> EpochSampler:
    return EpochSampler(
        count, batch_size=batch, shuffle=shuffle, rank=rank, world_size=world, seed=1, drop_last=drop_last
    )


def _equal(a: Batch, b: Batch) -> bool:
    pixels = torch.equal(a.images.pixels, b.images.pixels) and torch.equal(a.images.padding, b.images.padding)
    targets = all(
        s.image_id == t.image_id and torch.equal(s.boxes, t.boxes) and torch.equal(s.labels, t.labels)
        for s, t in zip(a.targets, b.targets, strict=True)
    )
    return pixels and targets


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("divisor", "expected"), [(1, (5, 7)), (4, (8, 8)), (32, (32, 32))])
def test_collate_pads_right_and_below(divisor: int, expected: tuple[int, int], dtype: torch.dtype) -> None:
    target = Target(torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), 1, (5, 4))
    ones = [torch.ones((3, *size), dtype=dtype) for size in ((5, 4), (2, 7))]
    batch = collate([(image, target) for image in ones], size_divisor=divisor)
    assert tuple(batch.images.pixels.shape) == (2, 3, *expected)
    assert batch.images.pixels.dtype == dtype
    assert batch.images.sizes.tolist() == [[5, 4], [2, 7]]
    for i, (height, width) in enumerate(batch.images.sizes.tolist()):
        inside = torch.zeros(expected, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(batch.images.padding[i], ~inside)
        assert torch.equal(batch.images.pixels[i], inside.to(dtype).expand(3, -1, -1))


def test_dataset_gives_relative_boxes_and_original_size(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    pixels, target = dataset[4]
    assert (pixels.dtype, pixels.is_contiguous(), type(pixels)) == (torch.uint8, True, Tensor)
    assert (target.image_id, dataset.image_id(4), target.original_size) == (14, 14, (30, 40))
    assert target.boxes.dtype == torch.float32
    assert 0 <= float(target.boxes.min()) <= float(target.boxes.max()) <= 1
    assert target.labels.dtype == torch.int64
    dataset.set_epoch(1)
    assert torch.equal(dataset[4][0], dataset.sample(4, 1)[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_do_not_matter_r3(tmp_path: Path, workers: int) -> None:
    expected, actual = _loader(_dataset(tmp_path)), _loader(_dataset(tmp_path), workers=workers)
    seen: list[Tensor] = []
    for epoch in (0, 1):
        expected.set_epoch(epoch)
        actual.set_epoch(epoch)
        pairs = list(zip(expected, actual, strict=True))
        assert len(pairs) == len(expected) == 4
        assert all(_equal(a, b) for a, b in pairs)
        seen.append(pairs[0][1].images.pixels)
    actual.close()
    assert seen[0].shape != seen[1].shape or not torch.equal(seen[0], seen[1])


def test_augmentation_depends_on_epoch_and_image_only(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    reordered = CocoDataset(dataset.split.subset([16, 12]), dataset.transform, seed=3)
    assert torch.equal(dataset.sample(6, 5)[0], reordered.sample(1, 5)[0])
    assert len({tuple(dataset.sample(6, epoch)[0].shape) for epoch in range(6)}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(tmp_path: Path, workers: int) -> None:
    state = torch.get_rng_state()
    loader = _loader(_dataset(tmp_path), workers=workers)
    assert len(list(loader)) == 4
    loader.close()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 17])
def test_ranks_cover_everything_and_train_in_equally_many_steps_s02(count: int, world: int) -> None:
    for shuffle in (True, False):
        samplers = [_sampler(count, rank, world, 2, shuffle=shuffle) for rank in range(world)]
        steps = [list(sampler) for sampler in samplers]
        assert [len(part) for part in steps] == [len(sampler) for sampler in samplers]
        times = Counter(index for part in steps for batch in part for index in batch)
        assert set(times) == set(range(count))
        if world == 1 or not shuffle:
            assert set(times.values()) == {1}
        if shuffle:  # every rank has as many images in a step
            assert {len(part) for part in steps} == {samplers[0].batches_per_epoch}
            assert all(len({len(part[t]) for part in steps}) == 1 for t in range(len(samplers[0])))
            assert sum(times.values()) - count < world


@pytest.mark.parametrize("count", [3, 8, 13])
def test_the_images_of_a_step_do_not_depend_on_ranks_r4(count: int) -> None:
    single = list(_sampler(count, 0, 1, 4, shuffle=True, drop_last=True))
    ranks = [list(_sampler(count, rank, 2, 2, shuffle=True, drop_last=True)) for rank in range(2)]
    for whole, *parts in zip(single, *ranks, strict=True):
        joined = [index for part in parts for index in part]
        assert joined[: len(whole)] == whole


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(1, 18))
def test_evaluation_batches_do_not_depend_on_ranks_r5(count: int, world: int) -> None:
    expected = {tuple(range(i, min(i + 3, count))) for i in range(0, count, 3)}
    samplers = [_sampler(count, rank, world, 3, shuffle=False) for rank in range(world)]
    found = [tuple(batch) for sampler in samplers for batch in sampler]
    assert sorted(found) == sorted(expected)  # each image once
    assert max(map(len, samplers)) == samplers[0].batches_per_epoch <= min(map(len, samplers)) + 1


def test_drop_last_keeps_at_least_one_batch() -> None:
    assert [len(batch) for batch in _sampler(7, 0, 1, 3, shuffle=True, drop_last=True)] == [3, 3]
    assert [len(batch) for batch in _sampler(2, 0, 1, 3, shuffle=True, drop_last=True)] == [2]
    assert [len(batch) for batch in _sampler(1, 1, 2, 3, shuffle=True, drop_last=True)] == [1]


def test_order_changes_with_the_epoch_and_start_resumes_it() -> None:
    sampler = _sampler(20, 0, 1, 3, shuffle=True)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0, start=2)
    assert list(sampler) == first[2:]
    assert len(sampler) == len(first) - 2
    assert sampler.batches_per_epoch == len(first)


@pytest.mark.parametrize("workers", [0, 2])
def test_error_in_a_worker_keeps_type_code_and_message_d18(tmp_path: Path, workers: int) -> None:
    dataset = _dataset(tmp_path)
    (tmp_path / "5.png").write_bytes(b"<html>")
    with pytest.raises(DataError) as caught:
        list(_loader(dataset, workers=workers, shuffle=False))
    assert caught.value.code == "D18"
    assert str(caught.value).startswith(f"error[D18]: {tmp_path / '5.png'} (image id 15): ")
    assert "Traceback" not in str(caught.value)


class _Hanging(CocoDataset):
    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        if index == 4:
            time.sleep(3)
        return super().sample(index, epoch)


class _Dying(CocoDataset):
    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        if index == 4:
            os._exit(3)
        return super().sample(index, epoch)


@pytest.mark.parametrize("workers", [1, 2])
def test_dead_worker_names_the_images_p10(tmp_path: Path, workers: int) -> None:
    dataset = _Dying(_split(tmp_path), TrainTransformConfig(scales=(24,)).build(), seed=0)
    with pytest.raises(WorkerError, match=r"(died|exited unexpectedly).*not returned: \[.*14.*\]") as caught:
        list(_loader(dataset, workers=workers, shuffle=False))
    assert caught.value.exit_code == 7


def test_hanging_worker_is_given_up_p10(tmp_path: Path) -> None:
    dataset = _Hanging(_split(tmp_path), TrainTransformConfig(scales=(24,)).build(), seed=0)
    with pytest.raises(WorkerError, match=r"timed out.*not returned: \[14"):
        list(_loader(dataset, workers=1, shuffle=False, timeout=0.5))


def test_worker_error_recognises_its_own(tmp_path: Path) -> None:
    loader = _loader(_dataset(tmp_path))
    assert loader.worker_error(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")) is not None
    assert loader.worker_error(RuntimeError("shape mismatch")) is None
    assert loader.worker_error(OSError("No space left on device")) is None


class _Missing(CocoDataset):
    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        raise OSError("a fault of the data set")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_keep_their_type(tmp_path: Path, workers: int) -> None:
    dataset = _Missing(_split(tmp_path), TrainTransformConfig().build(), seed=0)
    with pytest.raises(OSError, match="a fault of the data set"):
        list(_loader(dataset, workers=workers))


def test_closed_loader_starts_again(tmp_path: Path) -> None:
    loader = _loader(_dataset(tmp_path), workers=1)
    for _ in range(2):
        next(iter(loader))
        loader.close()
    assert len(list(loader)) == 4
    loader.close()


def test_boxes_of_a_large_jpeg_are_those_of_the_whole_one(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    picture = Image.new("RGB", (1601, 1203), (20, 20, 20))
    picture.paste((240, 30, 30), (401, 300, 1001, 900))
    picture.save(tmp_path / "train" / "large.jpg", quality=95)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [401, 300, 600, 600]}
    image = {"id": 1, "file_name": "large.jpg", "width": 1601, "height": 1203}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "red"}]}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    plainly = ("data.train.flip_probability=0.0", "data.train.crop_probability=0.0")
    config = small_runs.config("data.train.square=true", "data.train.scales=[128]", *plainly)
    split = small_runs.splits_of(tmp_path, config).train
    reduced, whole = (CocoDataset(split, config.data.train.build(), seed=3) for _ in range(2))
    whole.transform = EvalTransformConfig(size=128, square=True).build()
    assert reduced.transform.shorter == 128
    assert whole.transform.shorter is None
    pixels, target = reduced.sample(0, 1)
    plain, expected = whole.sample(0, 1)
    torch.testing.assert_close(target.boxes, expected.boxes, rtol=0, atol=1e-3)
    assert target.original_size == expected.original_size == (1203, 1601)
    # Only pixels at the border of the square may differ by more than rounding.
    assert float(((pixels.int() - plain.int()).abs() > 12).float().mean()) < 0.03
