"""Images that are the same or almost the same, in one split or in both."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lora_detr.data.coco.audit import audit
from lora_detr.data.images import Look, decode_file, look_of
from lora_detr.data.quality.finding import Finding
from lora_detr.data.twins import earlier_twins
from tests.unit.data.coco.coco_files import content, write, write_images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a COCO folder of four and three different images, 96 x 72 pixels."""
    (tmp_path / "annotations").mkdir()
    for seed, (split, count) in enumerate((("train", 4), ("val", 3))):
        (tmp_path / split).mkdir()
        value = content(count, 96, 72)
        write_images(tmp_path / split, value, seed)
        for path in (tmp_path / split).iterdir():
            _coarse(path)
        write(tmp_path / "annotations", value, f"instances_{split}.json")
    return tmp_path


def _coarse(path: Path) -> None:
    """Make noise of large patches of it, which survive compression as those of photos do."""
    picture = Image.open(path).convert("RGB")
    picture.resize((12, 9), Image.Resampling.NEAREST).resize(picture.size, Image.Resampling.BICUBIC).save(path)


def copy_as_jpeg(source: Path, target: Path, brightness: float = 1.1) -> None:
    """Write what differs in every byte, and shows the same, under a name that ends with .png."""
    file = io.BytesIO()
    ImageEnhance.Brightness(Image.open(source).convert("RGB")).enhance(brightness).save(file, "JPEG", quality=60)
    target.write_bytes(file.getvalue())


def found(data: Path, verify: str = "decode") -> list[Finding]:
    return list(audit(data, verify="decode" if verify == "decode" else "none").findings)


def test_different_images_are_no_finding(data: Path) -> None:
    assert found(data) == []


def test_the_same_file_twice_in_a_split(data: Path) -> None:
    shutil.copy(data / "train" / "0.png", data / "train" / "2.png")
    (finding,) = found(data)
    assert (finding.id, finding.severity, finding.count) == ("Q01", "warning", 1)
    assert finding.places == ("2.png (image id 12) and 0.png (image id 10)",)
    assert found(data, "none") == []


def test_almost_the_same_image_twice_in_a_split(data: Path) -> None:
    copy_as_jpeg(data / "train" / "0.png", data / "train" / "3.png")
    (finding,) = found(data)
    assert (finding.id, finding.severity, finding.count) == ("Q02", "info", 1)
    assert finding.places == ("3.png (image id 13) and 0.png (image id 10)",)


def test_almost_the_same_image_in_both_splits(data: Path) -> None:
    copy_as_jpeg(data / "train" / "3.png", data / "val" / "1.png")
    (finding,) = found(data)
    assert (finding.id, finding.severity, finding.count) == ("Q03", "warning", 1)
    assert finding.text.startswith("instances_val.json: 1 of 3 images almost the same as one of instances_train.json")
    assert finding.places == ("1.png (image id 11) and 3.png (image id 13)",)


def test_the_same_file_in_both_splits_is_d27_alone(data: Path) -> None:
    shutil.copy(data / "train" / "3.png", data / "val" / "0.png")
    (finding,) = found(data)
    assert (finding.id, finding.count) == ("D27", 1)


def test_smooth_images_of_near_hashes_are_compared_more_closely() -> None:
    rising = np.linspace(0, 250, 256).astype(np.uint8)
    step = np.repeat([0, 250], 128).astype(np.uint8)
    alike = (rising // 2 + 20).astype(np.uint8)
    flat = np.full(256, 90, dtype=np.uint8)
    pictures = [rising, step[::-1], alike, flat, flat + 3]
    looks = [Look(7, picture.astype(np.uint8).tobytes()) for picture in pictures]
    assert earlier_twins(looks).tolist() == [-1, -1, 0, -1, 3]
    assert earlier_twins([]).tolist() == []
    assert earlier_twins([looks[0], looks[2]._replace(hash=2**40 - 1)]).tolist() == [-1, -1]


def test_many_images_of_one_hash_are_compared_in_parts() -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (40, 256), dtype=np.uint8)
    chosen = random.integers(0, 40, 1500)
    looks = [Look(0, pictures[i].tobytes()) for i in chosen]
    first = {int(i): place for place, i in reversed(list(enumerate(chosen)))}
    expected = [first[int(i)] if first[int(i)] < place else -1 for place, i in enumerate(chosen)]
    assert earlier_twins(looks).tolist() == expected


def test_copies_of_an_image_are_twins(data: Path) -> None:
    target = data / "copy.png"
    source = data / "train" / "0.png"
    for brightness in (0.9, 1.2):
        copy_as_jpeg(source, target, brightness)
        assert earlier_twins([look_of(decode_file(path)) for path in (source, target)]).tolist() == [-1, 0]
