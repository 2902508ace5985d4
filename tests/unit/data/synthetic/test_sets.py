"""The generated data set."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lora_detr.data.coco.layout import GENERATED
from lora_detr.data.layouts.registry import find_splits
from lora_detr.data.synthetic import sets
from lora_detr.data.synthetic.scene import Dice, Scene
from lora_detr.data.synthetic.sets import (
    SHAPES,
    SHAPES_EASY,
    SHAPES_SPARSE,
    SPECS,
    ShapesSpec,
    cached,
    display_name,
    generate,
    resolve_generated,
)
from lora_detr.data.synthetic.shapes import LABELLED, REACH
from lora_detr.errors import ConfigError, DataError, OutputError

TINY = replace(SHAPES, name="tiny", size=64, max_objects=6, min_scale=0.12)


def read(folder: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    return content


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file by its relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_bytes_and_a_longer_set_begins_alike(tmp_path: Path) -> None:
    first = contents(generate(TINY, tmp_path / "a", seed=3, train_images=3, val_images=2))
    assert contents(generate(TINY, tmp_path / "b", seed=3, train_images=3, val_images=2)) == first
    longer = contents(generate(TINY, tmp_path / "c", seed=3, train_images=4, val_images=2))
    assert {path: longer[path] for path in first if path.startswith("train")} == {
        path: digest for path, digest in first.items() if path.startswith("train")
    }
    other = contents(generate(TINY, tmp_path / "d", seed=4, train_images=3, val_images=2))
    assert all(other[path] != digest for path, digest in first.items())


@pytest.mark.parametrize(
    ("spec", "pixels", "annotations"),
    [
        (SHAPES, "db80a82581068aac", "ee46343f69506f34"),
        (SHAPES_EASY, "177cb60acc8cbb0b", "1ab9d965bc3b3d89"),
    ],
    ids=lambda value: value.name if isinstance(value, ShapesSpec) else "",
)
def test_pixels_are_those_of_every_other_machine(
    tmp_path: Path, spec: ShapesSpec, pixels: str, annotations: str
) -> None:
    # A change of these digests changes every published number on the set: raise sets.VERSION with it.
    folder = generate(spec, tmp_path / "set", train_images=4, val_images=0)
    digest = hashlib.sha256()
    for path in sorted((folder / "train").iterdir()):
        digest.update(Image.open(path).tobytes())
    assert digest.hexdigest()[:16] == pixels
    assert hashlib.sha256(json.dumps(read(folder, "train")).encode()).hexdigest()[:16] == annotations


@pytest.mark.parametrize("split", ["train", "val"])
def test_is_valid_coco(shapes_tiny: Path, split: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(shapes_tiny / "annotations" / f"instances_{split}.json"))
    assert coco.getCatIds() == [3 + 4 * index for index in range(10)]
    assert {category["name"] for category in coco.loadCats(coco.getCatIds())} == set(LABELLED)
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(shapes_tiny / split / image["file_name"]) as stored:
            assert stored.size == (image["width"], image["height"])
            assert stored.mode == "RGB"
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = coco.loadImgs(annotation["image_id"])[0]
        left, top, width, height = annotation["bbox"]
        assert 0 <= left < left + width <= image["width"]
        assert 0 <= top < top + height <= image["height"]
        assert 0 < annotation["area"] <= width * height
        assert annotation["category_id"] in coco.cats
    assert set(read(shapes_tiny, "train")) == set(read(shapes_tiny, split))


def test_splits_share_no_image(shapes_tiny: Path) -> None:
    train, val = (read(shapes_tiny, split)["images"] for split in ("train", "val"))
    assert not {image["id"] for image in train} & {image["id"] for image in val}
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in shapes_tiny.rglob("*.png")]
    assert len(set(digests)) == len(digests) == 18


def test_some_images_are_empty_and_counts_and_sizes_vary(tmp_path: Path) -> None:
    spec = replace(SHAPES, size=128)
    content = read(generate(spec, tmp_path / "set", train_images=96, val_images=0), "train")
    counts = {image["id"]: 0 for image in content["images"]}
    for annotation in content["annotations"]:
        counts[annotation["image_id"]] += 1
    assert sum(count == 0 for count in counts.values()) == 6
    assert max(counts.values()) in range(12, 21)
    longest = [max(annotation["bbox"][2:]) for annotation in content["annotations"]]
    assert max(longest) / min(longest) >= 16
    assert {annotation["category_id"] for annotation in content["annotations"]} == set(range(3, 43, 4))
    sides = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    cut = [
        a["bbox"][0] == 0 or a["bbox"][1] == 0 or a["bbox"][0] + a["bbox"][2] == sides[a["image_id"]][0]
        for a in content["annotations"]
    ]
    assert 0.05 < sum(cut) / len(cut) < 0.6


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_box_is_tight(name: str) -> None:
    for number in range(8):
        scene = Scene(Dice(number), 60, 80, clutter=0.0)
        before = scene.pixels().astype(int)
        scene = Scene(Dice(number), 60, 80, clutter=0.0)
        if not scene.place(name, 18):
            continue
        # A second scene from the same numbers has the same background, so whatever differs clearly is the shape.
        changed = numpy.abs(scene.pixels().astype(int) - before).max(axis=2) > 24
        ((left, top, width, height),) = [placed.box for placed in scene.placed]
        rows, columns = numpy.flatnonzero(changed.any(axis=1)), numpy.flatnonzero(changed.any(axis=0))
        changed_box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        # The soft edge of a sharp tip may show up to two pixels beyond, or its faintest pixel may not show.
        assert numpy.abs(numpy.subtract(changed_box, (left, top, width, height))).max() <= 3


@pytest.mark.parametrize("name", sorted(LABELLED))
def test_shapes_stay_within_reach(name: str) -> None:
    axis = numpy.linspace(-2, 2, 201, dtype=numpy.float32)
    u, v = numpy.meshgrid(axis, axis)
    inside = LABELLED[name](u, v) <= 0
    assert inside.any()
    assert numpy.hypot(u, v)[inside].max() <= REACH


def test_a_complete_folder_is_reused_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    folder = generate(TINY, tmp_path / "set", train_images=2, val_images=1)
    marker = folder / "marker"
    marker.touch()
    assert generate(TINY, folder, train_images=2, val_images=1) == folder
    assert marker.exists()
    next((folder / "train").iterdir()).unlink()
    generate(TINY, folder, train_images=2, val_images=1)
    assert not marker.exists()
    assert len(list((folder / "train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # nothing temporary stays


def test_other_content_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        generate(TINY, tmp_path, train_images=1, val_images=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    folder = generate(TINY, tmp_path / "set", train_images=1, val_images=1)
    with pytest.raises(DataError, match="another generated set"):
        generate(TINY, folder, seed=1, train_images=1, val_images=1)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the generated set"):
        generate(TINY, tmp_path / "file" / "set", train_images=1, val_images=1)


def test_two_at_once_give_one_folder(tmp_path: Path) -> None:
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(generate(TINY, tmp_path / "set", train_images=2, val_images=1)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "set"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_name_behind_data_is_a_generated_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of that name is stronger; whatever is neither stays what was given."""
    monkeypatch.setitem(sets.SPECS, "shapes-sparse", replace(SHAPES_SPARSE, train_images=1, val_images=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = Path("shapes-sparse")
    folder = resolve_generated(name)
    assert (folder, display_name(folder)) == (cached("shapes-sparse"), "shapes-sparse")
    assert find_splits(resolve_generated(name)).val.images == folder / "val"
    assert resolve_generated(Path("absent")) == Path("absent")
    assert display_name(tmp_path / "cells") == "cells"
    with pytest.raises(ConfigError, match="found nothing there") as caught:
        find_splits(Path("absent"))
    assert "shapes-sparse" in caught.value.remedy
    name.mkdir()
    assert resolve_generated(name) == name


def test_looking_for_splits_makes_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert tuple(SPECS) == GENERATED
    for name, meant in {"shapes-esy": "shapes-easy", **{name: name for name in GENERATED}}.items():
        with pytest.raises(
            ConfigError, match=f"--data {name}: .* found nothing there; did you mean '{meant}'"
        ) as caught:
            find_splits(Path(name))
        assert ", ".join(GENERATED) in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_sparse_images_have_at_most_five_objects(tmp_path: Path) -> None:
    folder = generate(
        replace(SHAPES_SPARSE, size=96, min_scale=0.1), tmp_path / "sparse", train_images=40, val_images=1
    )
    counts = Counter(row["image_id"] for row in read(folder, "train")["annotations"])
    assert max(counts.values()) == 5
    assert len(set(counts.values())) > 3


def test_cached_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sets.SPECS, "shapes-easy", replace(SHAPES_EASY, train_images=1, val_images=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cached("shapes-easy").parent == tmp_path / "lora_detr"
    assert cached("shapes-easy", tmp_path / "here").parent == tmp_path / "here"
    with pytest.raises(ConfigError, match="did you mean 'shapes'"):
        cached("shape")
    with pytest.raises(ConfigError, match="did you mean 'circle'"):
        replace(SHAPES, classes=("circel",))
