"""Images as arrays: what a record holds, parts of a table, and what a process that reads them costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_detr.data.coco.records import ImageTable, make_table
from tests.conftest import REPOSITORY

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


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell private memory")
@pytest.mark.slow
def test_a_process_that_reads_images_makes_no_copy_of_the_annotations(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.data.coco.private_memory", str(tmp_path)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["size"] > 1_500_000
    assert found["copied"] > 4_000, "the measurement sees no copies"
    assert found["first"] < 1_000
    assert found["second"] < 1_000
