"""A resumed run sees the data that it started on, or is refused with what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_detr.checkpoints.checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.runs import run
from tests import small_runs
from tests.small_runs import Lines, read_lines
from tests.unit.data.coco.coco_files import rotate_names


@pytest.fixture
def data(shapes_tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_tiny, tmp_path / "data"))


def annotations(data: Path, split: str) -> Path:
    return data / "annotations" / f"instances_{split}.json"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_boxes(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        row["bbox"] = [1, 1, 9, 9]


def drop_annotations(content: dict[str, Any]) -> None:
    del content["annotations"][::2]


def last(directory: Path) -> Path:
    return max((directory / "checkpoints").glob("step-*"))


def rewrite(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write the last checkpoint of a run again with another state."""
    loaded: LoadedCheckpoint = load_checkpoint(last(directory), with_optimizer=True)
    state = loaded.state.to_json()
    change(state)
    save_checkpoint(
        directory / "checkpoints",
        step=loaded.step,
        model=loaded.model,
        optimizer=loaded.optimizer,
        ema=loaded.ema,
        state=type(loaded.state).from_json(state),
        facts=loaded.manifest.facts,
    )


@pytest.mark.parametrize(
    ("change", "splits", "parts"),
    [
        (rotate_names, ("train", "val"), "training split: categories (label 0 was 'circle' (id "),
        (replace_boxes, ("train",), "what differs: training split: annotations"),
        (replace_boxes, ("val",), "what differs: validation split: annotations"),
        (
            drop_annotations,
            ("train", "val"),
            "what differs: training split: annotations; validation split: annotations",
        ),
    ],
)
def test_other_labels_and_boxes_of_the_same_images_are_refused_c08(
    change: Callable[[dict[str, Any]], None], splits: tuple[str, ...], parts: str, own_run: Path, data: Path
) -> None:
    for split in splits:
        edit(annotations(data, split), change)
    before = small_files(own_run)
    with pytest.raises(ConfigError, match="is not what the run started on") as caught:
        run.resume(own_run, {"train.epochs": 3, "data.path": data}, Lines())
    assert (caught.value.code, caught.value.exit_code) == ("C08", 2)
    assert parts in caught.value.message
    # Whoever insists on other labels would be refused as well.
    assert ("--weights" if change is rotate_names else "--override data") in caught.value.remedy
    assert small_files(own_run) == before


def small_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.name != ".lock"}


def test_rotated_names_cannot_be_insisted_on_c08(own_run: Path, data: Path) -> None:
    for split in ("train", "val"):
        edit(annotations(data, split), rotate_names)
    with pytest.raises(ConfigError, match=r"labels would change meaning \(label 0 was 'circle'"):
        run.resume(own_run, {"train.epochs": 3, "data.path": data}, Lines(), ["data"])


def test_other_boxes_by_name_are_taken_and_recorded_c08(own_run: Path, data: Path) -> None:
    edit(annotations(data, "train"), drop_annotations)
    lines = Lines()
    run.resume(own_run, {"train.max_steps": 13, "train.epochs": 3, "data.path": data}, lines, ["data"])
    assert "note: overridden: data: training split: annotations" in lines.lines
    (record,) = read_lines(own_run / "changes.jsonl")
    assert [one["differs"] for one in record["changes"] if one["key"] == "data"] == ["training split: annotations"]
    assert json.loads((last(own_run) / "state.json").read_text())["data"]["train"] != record["changes"][-1]["was"]


def as_older_version(state: dict[str, Any], data: Path) -> None:
    for split in ("train", "val"):
        rows = sorted(json.loads(annotations(data, split).read_text())["images"], key=lambda row: row["id"])
        text = "".join(f"{row['id']} {row['width']} {row['height']}\n" for row in rows)
        state["data"][split] = hashlib.sha256(text.encode()).hexdigest()


def test_a_run_of_an_older_version_resumes_and_learns_the_rest(own_run: Path, data: Path) -> None:
    rewrite(own_run, lambda state: as_older_version(state, data))
    lines = Lines()
    run.resume(own_run, {"train.max_steps": 13, "train.epochs": 3, "data.path": data}, lines)
    (note,) = [line for line in lines.lines if "only ids and sizes of its images" in line]
    assert note.startswith("note: ")
    # From here on everything is known, and compared.
    edit(annotations(data, "train"), replace_boxes)
    with pytest.raises(ConfigError, match="training split: annotations"):
        run.resume(own_run, {"train.max_steps": 14}, lines)


def test_what_an_older_version_recorded_is_compared_c08(own_run: Path, data: Path) -> None:
    rewrite(own_run, lambda state: as_older_version(state, data))
    edit(annotations(data, "val"), lambda content: content["images"][0].update(id=4711))
    edit(annotations(data, "val"), lambda content: content.update(annotations=[]))
    with pytest.raises(ConfigError, match=r"what differs: validation split: images\n"):
        run.resume(own_run, {"train.epochs": 3, "data.path": data}, Lines())
    for split in ("train", "val"):
        edit(annotations(data, split), rotate_names)
    with pytest.raises(ConfigError, match="training split: categories"):
        run.resume(own_run, {"train.epochs": 3, "data.path": data}, Lines())


def test_a_photo_replaced_by_another_of_its_size_is_refused_where_files_are_read_c08(
    data: Path, tmp_path: Path
) -> None:
    directory = small_runs.train(data, tmp_path / "run", "train.max_steps=1", "data.verify=decode").directory
    run.resume(directory, {"train.max_steps": 2, "data.verify": "none"}, Lines())
    path = min((data / "train").glob("*.*"))
    with Image.open(path) as image:
        Image.new(image.mode, image.size).save(path)
    with pytest.raises(ConfigError, match="what differs: training split: image files") as caught:
        run.resume(directory, {"train.max_steps": 3, "data.verify": "decode"}, Lines())
    assert caught.value.code == "C08"


def test_exchanged_names_of_checkpoints_are_noticed_k14(own_run: Path) -> None:
    checkpoints = own_run / "checkpoints"
    first, second = (checkpoints / f"step-{step:08d}" for step in (6, 12))
    first.rename(checkpoints / "aside")
    second.rename(first)
    (checkpoints / "aside").rename(second)
    with pytest.raises(CheckpointError, match="its name states step 6, its manifest step 12: it was renamed") as caught:
        load_checkpoint(first, with_optimizer=False)
    assert (caught.value.code, caught.value.exit_code) == ("K14", 4)
    assert caught.value.remedy.startswith("name it step-00000012 again")
    with pytest.raises(CheckpointError, match=r"none of 2 checkpoints can be used; .*states step 12") as both:
        run.resume(own_run, {"train.epochs": 3}, Lines())
    assert "step-00000006" in both.value.remedy


def test_a_renamed_checkpoint_is_skipped_for_one_that_is_whole_k14(own_run: Path) -> None:
    checkpoints = own_run / "checkpoints"
    (checkpoints / "step-00000006").rename(checkpoints / "step-00000099")
    lines = Lines()
    run.resume(own_run, {"train.max_steps": 13, "train.epochs": 3}, lines)
    assert [line for line in lines.lines if line.startswith("skipped: ") and "states step 99" in line]
    assert any("at step 12 of 13" in line for line in lines.lines)
