"""Predicting on single images: every kind of input, what is selected, and the forms of the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lora_detr
from lora_detr.checkpoints.opened import open_run
from lora_detr.checkpoints.stripped_file import write_stripped
from lora_detr.data.coco.categories import UNUSED
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.errors import CheckpointError, ConfigError, DataError
from lora_detr.evaluation.drawing import enlargement, label_colour
from lora_detr.evaluation.predictor import ImagePrediction, Predictor, coco_document
from lora_detr.models import DeformableDetrConfig
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.structures import Images, Prediction

CPU = torch.device("cpu")
LOW = 0.2
"""A score that some detections of the small runs reach and others do not."""


@pytest.fixture(scope="module")
def predictor(learned_run: Path) -> Predictor:
    """The learned run, opened as a user does."""
    return lora_detr.load(learned_run, device="cpu")


@pytest.fixture(scope="module")
def photos(learned_data: Path) -> dict[int, Path]:
    """Path of each of the two images by id."""
    content = json.loads((learned_data.parent / "two.json").read_text())
    return {image["id"]: learned_data.parent / "pictures" / image["file_name"] for image in content["images"]}


class Fixed(nn.Module):
    """A detector that gives the same answer for every image and keeps what it was given."""

    def __init__(self, logits: Tensor, boxes: Tensor) -> None:
        super().__init__()
        self.logits, self.boxes = logits, boxes
        self.seen: list[Images] = []

    @property
    def prediction(self) -> Prediction:
        count = len(self.seen[-1].sizes)
        return Prediction(self.logits.expand(count, -1, -1), self.boxes.expand(count, -1, -1))

    def forward(self, images: Images) -> Fixed:
        self.seen.append(images)
        return self


CONFIG = DeploymentConfig(
    model=DeformableDetrConfig(),
    transform=EvalTransformConfig(size=20, max_size=40),
    size_divisor=1,
    max_detections=100,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    category_ids=(3, 11, 40),
    category_names=("rbc", "wbc", UNUSED),
)


def answering(scores: list[list[float]], boxes: list[list[float]], **changes: Any) -> Predictor:
    """Return a predictor whose detector always gives these scores [Q, 3] and boxes [Q, 4]."""
    logits = torch.logit(torch.tensor(scores).reshape(1, -1, 3))
    fixed = Fixed(logits, torch.tensor(boxes).reshape(1, -1, 4))
    return Predictor(fixed, CONFIG.model_copy(update=changes), CPU)  # type: ignore[arg-type]


def seen(predictor: Predictor) -> list[Images]:
    detector: Any = predictor.detector
    return list(detector.seen)


def noise(height: int = 30, width: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(first: ImagePrediction, second: ImagePrediction) -> None:
    assert torch.equal(first.boxes_xyxy_pixels, second.boxes_xyxy_pixels)
    assert torch.equal(first.scores, second.scores)
    assert (first.category_ids, first.names, first.size) == (second.category_ids, second.names, second.size)


def test_predictions_are_those_that_eval_wrote(
    predictor: Predictor, learned_run: Path, photos: dict[int, Path]
) -> None:
    written = json.loads((learned_run / "eval" / "predictions.json").read_text())
    for image_id, path in photos.items():
        found = predictor.predict(path, score=LOW)
        rows = [row for row in written if row["image_id"] == image_id and row["score"] >= LOW]
        assert len(found) == len(rows) > 3
        rows.sort(key=lambda row: -row["score"])
        np.testing.assert_allclose(found.scores, [row["score"] for row in rows], atol=1e-5)
        height, width = found.size
        limit = np.array([width, height, width, height])
        corners = np.array([row["bbox"] for row in rows])
        corners[:, 2:] += corners[:, :2]
        corners = np.clip(corners, 0, limit)
        classes = np.array([row["category_id"] for row in rows])
        # Two of the same score may change places: an image alone is summed in another order than in a batch.
        distance = np.abs(np.array(found.boxes_xyxy_pixels)[:, None] - corners).max(-1)
        distance[np.array(found.category_ids)[:, None] != classes] = np.inf
        order = distance.argmin(1)
        assert sorted(order) == list(range(len(rows)))
        assert distance[np.arange(len(rows)), order].max() < 1e-2
        np.testing.assert_allclose(found.scores, [rows[place]["score"] for place in order], atol=1e-5)


def test_what_the_model_knows_is_found(predictor: Predictor, learned_data: Path, photos: dict[int, Path]) -> None:
    content = json.loads((learned_data.parent / "two.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image_id, path in photos.items():
        found = predictor.predict(path, score=0.0)
        there = {row["category_id"] for row in content["annotations"] if row["image_id"] == image_id}
        assert found.category_ids[0] in there
        assert [names[i] for i in found.category_ids] == list(found.names)
        assert [predictor.classes[i] for i in found.labels.tolist()] == list(found.names)
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_all_kinds_of_input_give_the_same(predictor: Predictor, photos: dict[int, Path]) -> None:
    path = next(iter(photos.values()))
    with Image.open(path) as file:
        pixels = np.array(file.convert("RGB"))
    expected = predictor.predict(path, LOW)
    assert len(expected) > 3
    read_only = pixels.copy()
    read_only.flags.writeable = False
    kinds = [
        str(path),
        Image.fromarray(pixels),
        Image.fromarray(pixels).convert("RGBA"),
        pixels,
        read_only,
        pixels[:, :, ::-1].copy()[:, :, ::-1],  # runs backwards in memory, as BGR that was turned round
        torch.from_numpy(pixels).permute(2, 0, 1),
    ]
    for image in kinds:
        assert_same(predictor.predict(image, LOW), expected)
    for found in predictor.predict_many(kinds, LOW):
        assert_same(found, expected)


def test_an_input_is_left_as_it_is(predictor: Predictor) -> None:
    pixels = noise()
    before = pixels.copy()
    predictor.predict(pixels)
    predictor.predict(torch.from_numpy(pixels).permute(2, 0, 1)).draw()
    assert (pixels == before).all()


def test_run_checkpoint_and_stripped_file_give_the_same(
    predictor: Predictor, learned_run: Path, photos: dict[int, Path], tmp_path: Path
) -> None:
    stripped = tmp_path / "model.safetensors"
    opened = open_run(learned_run)
    write_stripped(stripped, opened.model.detector.state_dict(), opened.deployment)
    for model in (str(learned_run), opened.path, stripped):
        other = lora_detr.load(model, device="cpu")
        assert other.classes == predictor.classes
        for path in photos.values():
            assert_same(other.predict(path, LOW), predictor.predict(path, LOW))


def test_best_and_last_checkpoint(own_run: Path) -> None:
    steps = sorted(path.name for path in (own_run / "checkpoints").glob("step-*"))
    (own_run / "checkpoints" / "best").write_text(steps[0])
    image = noise()
    best = lora_detr.load(own_run, device="cpu").predict(image, 0.0)
    last = lora_detr.load(own_run, checkpoint="last", device="cpu").predict(image, 0.0)
    assert_same(best, lora_detr.load(own_run / "checkpoints" / steps[0], device="cpu").predict(image, 0.0))
    assert_same(last, lora_detr.load(own_run / "checkpoints" / steps[-1], device="cpu").predict(image, 0.0))
    assert not torch.equal(best.scores, last.scores)


def test_duplicates_are_suppressed_on_request() -> None:
    boxes = [[0.5, 0.5, 0.5, 0.5], [0.52, 0.5, 0.5, 0.5]]
    predictor = answering([[0.9, 0.1, 0.1], [0.8, 0.1, 0.1]], boxes)
    assert len(predictor.predict(noise())) == 2
    assert predictor.predict(noise(), nms_iou=0.7).scores.tolist() == pytest.approx([0.9])
    assert len(predictor.predict(noise(), nms_iou=0.99)) == 2
    assert [len(found) for found in predictor.predict_many([noise()] * 2, 0.85, 0.7)] == [1, 1]


def test_what_is_a_duplicate_and_the_least_score_are_settings_of_the_model() -> None:
    scores, boxes = [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1]], [[0.5, 0.5, 0.5, 0.5], [0.52, 0.5, 0.5, 0.5]]
    by_class, of_any = answering(scores, boxes), answering(scores, boxes, suppression="any-class")
    assert [predictor.predict(noise(), nms_iou=0.7).names for predictor in (by_class, of_any)] == [
        ("rbc", "wbc"),
        ("rbc",),
    ]
    assert of_any.predict(noise()).names == ("rbc", "wbc")
    assert answering(scores, boxes, min_score=0.85).predict(noise(), score=0.0).names == ("rbc",)


def test_the_exif_orientation_is_applied_to_files_and_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    path = tmp_path / "turned.png"
    Image.fromarray(noise(30, 40)).save(path, exif=exif)
    predictor = answering([[0.9, 0.1, 0.1]], [[0.5, 0.25, 1.0, 0.5]])
    with Image.open(path) as opened:
        found = list(predictor.predict_many([path, opened], batch_size=2))
    for one in found:
        assert one.size == (40, 30)
        assert one.boxes_xyxy_pixels.tolist() == [[0, 0, 30, 20]]
        assert one.draw().size == (30 * enlargement(30, 40), 40 * enlargement(30, 40))
    pixels = seen(predictor)[0].pixels
    assert torch.equal(pixels[0], pixels[1])


def test_score_names_and_ids() -> None:
    predictor = answering([[0.2, 0.9, 0.99], [0.5, 0.1, 0.1], [0.3, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]] * 3)
    assert predictor.classes == ("rbc", "wbc", UNUSED)
    found = predictor.predict(noise(), score=0.4)
    assert found.names == ("wbc", "rbc")  # a label that stands for nothing is not predicted
    assert found.category_ids == (11, 3)
    assert found.labels.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5], abs=1e-6)
    exact = float(predictor.predict(noise(), score=0.0).scores[1])
    assert len(predictor.predict(noise(), score=exact)) == 2  # the least score is included
    assert len(predictor.predict(noise())) == 3  # 0.3 unless said otherwise
    assert len(predictor.predict(noise(), score=0.0)) == 6


def test_boxes_are_clipped_and_those_outside_left_out() -> None:
    boxes = [[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0], [1.5, 0.5, 0.2, 0.2], [1.0, 1.0, 0.0, 0.0]]
    predictor = answering([[0.9, 0.0, 0.0], [0.8, 0.0, 0.0], [0.7, 0.0, 0.0], [0.6, 0.0, 0.0]], boxes)
    found = predictor.predict(noise(30, 40))
    assert found.boxes_xyxy_pixels.tolist() == [[10, 7.5, 30, 22.5], [0, 0, 10, 15]]


def test_images_are_prepared_as_the_config_says() -> None:
    predictor = answering([[0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]], size_divisor=16)
    white = np.full((30, 60, 3), 255, dtype=np.uint8)
    found = list(predictor.predict_many([white, white[:, :30]], batch_size=2))
    (images,) = seen(predictor)
    assert images.pixels.shape == (2, 3, 32, 48)
    assert images.sizes.tolist() == [[20, 40], [20, 20]]
    assert images.pixels.dtype == torch.uint8
    assert images.pixels[0, :, :20, :40].unique().tolist() == [255]
    assert images.padding[1, :, 20:].all()
    assert [one.boxes_xyxy_pixels.tolist() for one in found] == [[[15, 7.5, 45, 22.5]], [[7.5, 7.5, 22.5, 22.5]]]


def test_many_images_come_in_order_and_only_when_asked_for() -> None:
    predictor = answering([[0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]])
    taken = []

    def images() -> Any:
        for i in range(5):
            taken.append(i)
            yield noise(20 + i, 40)

    found = predictor.predict_many(images(), batch_size=2)
    assert taken == []
    assert next(found).size == (20, 40)
    assert taken == [0, 1]
    assert [one.size[0] for one in found] == [21, 22, 23, 24]
    assert [len(batch.sizes) for batch in seen(predictor)] == [2, 2, 1]
    assert list(predictor.predict_many([])) == []


def test_nothing_found_works_everywhere() -> None:
    predictor = answering([[0.1, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]])
    found = predictor.predict(noise(300, 400))
    assert len(found) == 0
    assert found.boxes_xyxy_pixels.shape == (0, 4)
    assert (found.scores.shape, found.labels.shape) == ((0,), (0,))
    assert (found.names, found.category_ids) == ((), ())
    assert found.to_coco(1) == []
    assert found.describe() == "0 objects"
    assert (np.asarray(found.draw()) == noise(300, 400)).all()
    assert coco_document(predictor.categories, [found], [7], ["x.png"])["annotations"] == []


def test_the_description_counts_classes() -> None:
    boxes = [[0.5, 0.5, 0.5, 0.5]] * 3
    assert answering([[0.9, 0.8, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.1]], boxes).predict(noise()).describe() == (
        "3 objects (wbc 2, rbc 1)"
    )
    assert answering([[0.9, 0.1, 0.1]], boxes[:1]).predict(noise()).describe() == "1 object (rbc 1)"


def test_coco_annotations() -> None:
    predictor = answering([[0.1, 0.9, 0.1], [0.6, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5], [0.0, 0.5, 0.5, 0.4]])
    found = predictor.predict(noise(30, 40))
    first, second = found.to_coco(77, first_id=5)
    assert first == {
        "id": 5,
        "image_id": 77,
        "category_id": 11,
        "bbox": [10.0, 7.5, 20.0, 15.0],
        "area": 300.0,
        "iscrowd": 0,
        "score": pytest.approx(0.9),
    }
    assert (second["id"], second["category_id"]) == (6, 3)
    assert second["bbox"] == pytest.approx([0, 9, 10, 12])
    document = coco_document(predictor.categories, [found, found], [77, 78], ["a.png", "b.png"])
    assert document["images"][1] == {"id": 78, "file_name": "b.png", "width": 40, "height": 30}
    assert document["categories"] == [{"id": 3, "name": "rbc"}, {"id": 11, "name": "wbc"}]
    assert [row["id"] for row in document["annotations"]] == [1, 2, 3, 4]
    assert json.loads(json.dumps(document)) == document


def test_drawing_shows_the_boxes_on_the_image(tmp_path: Path) -> None:
    grey = np.full((300, 400, 3), 90, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    found = answering([[0.1, 0.9, 0.1]], [[0.5, 0.5, 0.5, 0.5]]).predict(tmp_path / "grey.png")
    picture = np.asarray(found.draw())
    assert picture.shape == grey.shape
    assert (picture[224, 150:250] == label_colour(1)).all()
    assert (picture[80:220, 105:295] == 90).all()
    Image.fromarray(grey[:200]).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="200 x 400 pixels high and wide; it was 300 x 400"):
        found.draw()


@pytest.mark.parametrize(
    ("image", "kind", "part"),
    [
        (3, TypeError, "found int"),
        (None, TypeError, "found NoneType"),
        ([noise()], TypeError, "found list"),
        (b"bytes", TypeError, "found bytes"),
        (noise().astype(np.float32), TypeError, "found float32 [30, 40, 3]"),
        (noise()[:, :, 0], ValueError, "found uint8 [30, 40]"),
        (noise()[:, :, :2], ValueError, "found uint8 [30, 40, 2]"),
        (noise().transpose(2, 0, 1), ValueError, "found uint8 [3, 30, 40]"),
        (noise()[:0], ValueError, "found uint8 [0, 40, 3]"),
        (noise()[None], ValueError, "found uint8 [1, 30, 40, 3]"),
        (torch.zeros(3, 30, 40), TypeError, "found float32 [3, 30, 40]"),
        (torch.zeros(30, 40, 3, dtype=torch.uint8), ValueError, "found uint8 [30, 40, 3]"),
        (torch.zeros(1, 3, 30, 40, dtype=torch.uint8), ValueError, "found uint8 [1, 3, 30, 40]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(image: Any, kind: type[Exception], part: str) -> None:
    predictor = answering([[0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]])
    with pytest.raises(kind) as caught:
        predictor.predict(image)
    assert "expected a" in str(caught.value)
    assert part in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    predictor = answering([[0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]])
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    for name in ("bad.jpg", "absent.jpg"):
        with pytest.raises(DataError, match=name):
            predictor.predict(tmp_path / name)
    Image.fromarray(noise()).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-400])
    with Image.open(tmp_path / "cut.png") as late, pytest.raises(DataError, match="cannot be read"):
        predictor.predict(late)


@pytest.mark.parametrize(
    ("options", "part"),
    [({"score": 1.2}, "score"), ({"score": float("nan")}, "score"), ({"nms_iou": -0.1}, "nms_iou")],
)
def test_numbers_out_of_range(options: dict[str, float], part: str) -> None:
    with pytest.raises(ValueError, match=f"{part} must be in"):
        answering([[0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]]).predict(noise(), **options)


def test_mistakes_with_many_images_show_at_once() -> None:
    predictor = answering([[0.9, 0.1, 0.1]], [[0.5, 0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predictor.predict_many([noise()], batch_size=0)
    for one in ("photo.jpg", Path("photo.jpg"), Image.fromarray(noise())):
        with pytest.raises(TypeError, match="use predict for one"):
            predictor.predict_many(one)  # type: ignore[arg-type]


def test_mistakes_of_load(tmp_path: Path, small_run: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        lora_detr.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="'best' or 'last', found 'first'"):
        lora_detr.load(small_run, checkpoint="first")  # type: ignore[arg-type]
    for device, part in (("cpuu", "did you mean 'cpu'"), ("cuda:99", "CUDA devices"), ("cuda:", "unknown")):
        with pytest.raises(ConfigError, match=part):
            lora_detr.load(small_run, device=device)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, lora_detr; lora_detr.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(lora_detr.__all__) == {"__version__", "load"}
