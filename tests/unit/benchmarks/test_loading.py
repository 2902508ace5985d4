"""The images that are drawn, and what is said of the path they take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import loading
from benchmarks.loading import ALL, COLLATING, DECODING, READING, STAGES, epoch, opened, synthetic_data
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import train_loader

IMAGES, SIZE = 5, 64
PRESET = "tests/small.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_data(tmp_path_factory.mktemp("loading") / "data", IMAGES, SIZE, "jpeg")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(loading.__file__).parent.parent)


def test_images_are_of_the_kind_and_size_asked_for(data: Path, tmp_path: Path) -> None:
    splits, _ = opened(data, PRESET, IMAGES, None)
    for record in splits.train.records:
        with Image.open(record.path) as image:
            assert image.format == "JPEG"
            assert image.size == (record.width, record.height)
            assert max(image.size) == SIZE
    drawn, _ = opened(synthetic_data(tmp_path / "png", 1, SIZE, "png"), PRESET, 1, None)
    with Image.open(drawn.train.records[0].path) as image:
        assert image.format == "PNG"


def test_first_images_and_batch_size(data: Path) -> None:
    splits, config = opened(data, PRESET, 4, 3)
    assert splits.train.image_ids == (1, 2, 3, 4)
    assert config.train.batch_size == 3
    assert opened(data, PRESET, 4, None)[1].train.batch_size == 2


def test_images_that_a_round_counts(data: Path) -> None:
    splits, config = opened(data, PRESET, IMAGES, 2)
    loader = train_loader(splits, config, World.from_environment("cpu"))
    assert epoch(loader, "cpu") == epoch(loader, "cpu") == 4  # the last batch is not full


def test_a_row_for_each_number_of_workers(data: Path) -> None:
    splits, config = opened(data, PRESET, 4, 2)
    rows = loading.worker_rows("small", splits, config, [1, 0], rounds=1, device="cpu")
    assert [row["workers"] for row in rows] == [0, 1]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["lowest"] <= row["ratio"] <= row["highest"]
        assert row["ratio"] == pytest.approx(row["images_a_second"] / rows[0]["images_a_second"])


def test_stages_add_up(data: Path) -> None:
    splits, config = opened(data, PRESET, IMAGES, 2)
    seconds = loading.stage_seconds(splits, config)
    assert tuple(seconds) == STAGES
    assert sum(seconds[stage] for stage in STAGES if stage != ALL) == pytest.approx(seconds[ALL])
    for stage in (READING, DECODING, COLLATING, "resize", "planes, relative boxes"):
        assert seconds[stage] > 0
    assert seconds["crop"] == 0  # the small settings crop nothing


def test_stages_leave_no_trace(data: Path) -> None:
    splits, config = opened(data, PRESET, 1, 1)
    before = loading.transforms.resize, loading.dataset_module.read_image
    row, *_ = loading.stage_rows("small", splits, config, rounds=1)
    assert (row["kind"], row["stage"], row["workers"]) == ("stage", READING, None)
    assert (loading.transforms.resize, loading.dataset_module.read_image) == before


def test_padding_with_and_without_groups(tmp_path: Path) -> None:
    splits, config = opened(synthetic_data(tmp_path / "data", 12, SIZE, "png"), PRESET, 12, 2)
    square = loading.padding_rows("small", splits, config, 1)
    assert [(row["kind"], row["grouped"], row["ratio"]) for row in square] == [
        ("padding", False, 0),
        ("padding", True, 0),
    ]
    uneven = config.data.train.model_copy(update={"square": False})
    changed = config.model_copy(update={"data": config.data.model_copy(update={"train": uneven})})
    without, grouped = loading.padding_rows("small", splits, changed, 3)
    for row in (without, grouped):
        assert 0 < row["lowest"] <= row["ratio"] <= row["highest"] < 1
    assert grouped["ratio"] < without["ratio"]


def test_json_alone_on_stdout(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(data), "--preset", PRESET, "--workers", "0", "--images", "2", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["loading.py", *options])
    loading.main()
    content = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in content["rows"]] == ["workers"] + ["stage"] * len(STAGES) + ["padding"] * 2
    assert content["options"]["images"] == 2
