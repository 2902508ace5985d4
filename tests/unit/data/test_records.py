"""Images as arrays: what a record holds, parts of a table, and what a process that reads them costs."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from lora_detr.data.coco import CocoSplit
from lora_detr.data.dataset import CocoDataset
from lora_detr.data.loader import build_loader
from lora_detr.data.records import ImageTable, make_table
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.structures import Target
from tests.unit.data.coco_files import content, load

NAMES = ("a.png", "größe/€.png", "half \ud800.png", "", "x" * 300)
COUNTS = (2, 0, 1, 3, 0)


@pytest.fixture
def table() -> ImageTable:
    rows = [(10 * i, name, 40 + i, 30 + i) for i, name in enumerate(NAMES)]
    boxes = np.arange(24, dtype=np.float32).reshape(6, 4)
    return make_table(Path("images"), rows, boxes, np.arange(6), np.array(COUNTS))


def test_a_record_says_what_was_stored(table: ImageTable) -> None:
    assert len(table) == 5
    record = table[3]
    assert (record.id, record.file_name, record.width, record.height) == (30, "", 43, 33)
    assert record.boxes_xyxy_pixels.tolist() == np.arange(12, 24, dtype=np.float32).reshape(3, 4).tolist()
    assert record.category_ids.tolist() == [3, 4, 5]
    assert tuple(one.file_name for one in table) == NAMES
    assert table[-4].path == Path("images/größe/€.png")
    assert [type(value) for value in (record.id, record.width)] == [int, int]
    assert table.object_counts.tolist() == list(COUNTS)


def test_a_table_is_a_sequence(table: ImageTable) -> None:
    assert [record.id for record in table[1:4]] == [10, 20, 30]
    assert [record.id for record in reversed(table)] == [40, 30, 20, 10, 0]
    for index in (5, -6):
        with pytest.raises(IndexError, match="of 5"):
            table[index]


@pytest.mark.parametrize("indices", [[], [2], [0, 3], [3, 0, 2], [0, 1, 2, 3, 4]])
def test_a_part_holds_the_same_records(table: ImageTable, indices: list[int]) -> None:
    part = table.take(np.array(indices, dtype=np.int64))
    assert len(part) == len(indices)
    for record, i in zip(part, indices, strict=True):
        expected = table[i]
        assert (record.id, record.file_name, record.path) == (expected.id, expected.file_name, expected.path)
        assert np.array_equal(record.boxes_xyxy_pixels, expected.boxes_xyxy_pixels)
        assert np.array_equal(record.category_ids, expected.category_ids)
    assert len(part.boxes_xyxy_pixels) == sum(COUNTS[i] for i in indices)


IMAGES, OBJECTS = 800, 80
# Buffers for the first images belong to the process, not to the annotations.
WARM = 100


class _Weighing(CocoDataset):
    """Says, in place of the boxes, how much memory the reading process has for itself."""

    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        pixels, target = super().sample(index, epoch)
        private = _private_kilobytes() if index in (WARM, IMAGES - 1) else 0
        return pixels, Target(target.boxes[:0], target.labels[:0], target.image_id, (private, 0))


class _WeighingObjects(_Weighing):
    """The same with an object for each image, as it must not be."""

    def __init__(self, split: CocoSplit) -> None:
        super().__init__(split, _transform(), seed=0)
        self.records = [[(record, box.tolist()) for box in record.boxes_xyxy_pixels] for record in split.records]

    def sample(self, index: int, epoch: int) -> tuple[Tensor, Target]:
        assert all(box[0] >= 0 for _, box in self.records[index])
        return super().sample(index, epoch)


def _private_kilobytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def _transform() -> object:
    return EvalTransformConfig(size=8, square=True).build((0.5,) * 3, (0.5,) * 3)


def _growth(dataset: CocoDataset) -> tuple[int, int]:
    """Return by how many kilobytes a process that reads grows in its first epoch, and until the end of the second."""
    loader = build_loader(
        dataset, batch_size=50, shuffle=False, rank=0, world_size=1, seed=0, workers=1, drop_last=False
    )
    gc.collect()
    weights = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        weights += [target.original_size[0] for batch in loader for target in batch.targets if target.original_size[0]]
    loader.close()
    first, last, _, end = weights
    return last - first, end - first


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell private memory")
def test_a_process_that_reads_images_makes_no_copy_of_the_annotations(tmp_path: Path) -> None:
    value = content(IMAGES, 8, 8)
    for row in value["images"]:
        row["file_name"] = "one.png"
    value["annotations"] = [
        {"id": i, "image_id": 10 + i // OBJECTS, "category_id": 1, "bbox": [0.5, 1, 3, 4], "area": 12, "iscrowd": 0}
        for i in range(IMAGES * OBJECTS)
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    split = load(tmp_path, value)
    arrays = vars(split.records).values()
    assert sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) > 1_500_000
    first, second = _growth(_Weighing(split, _transform(), seed=0))  # type: ignore[arg-type]
    copied, _ = _growth(_WeighingObjects(split))
    assert copied > 4_000, "the measurement sees no copies"
    # In a long-lived process the fork copies pages of others' objects too, in both cases alike.
    assert first < copied / 2
    assert second < copied / 4
