"""Tiles find small objects of large photos, and each object once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.evaluation.predictor import Predictor
from lora_detr.models import DeformableDetrConfig
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.structures import Images, Prediction

SIDE, FINEST = 128, 4
"""Pixels of an input, and of an object that the detector below can just see."""


class Answer:
    """What a detector returns."""

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction


class Blobs(nn.Module):
    """Finds bright rectangles on black that are at least ``FINEST`` pixels wide and high, as a detector would."""

    def forward(self, images: Images) -> Answer:
        found = [self._boxes(pixels) for pixels in images.pixels]
        most = max(1, *map(len, found))
        boxes, logits = torch.zeros(len(found), most, 4), torch.full((len(found), most, 2), -9.0)
        for i, own in enumerate(found):
            boxes[i, : len(own)] = own
            logits[i, : len(own), 0] = 2.0 + own[:, 2] if len(own) else 0.0
        return Answer(Prediction(logits, boxes))

    def _boxes(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1:]
        bright = (pixels[0] > 120).numpy()
        found, seen = [], np.zeros_like(bright)
        for y, x in zip(*np.nonzero(bright), strict=True):
            if not seen[y, x]:
                right, bottom = x, y
                while right < width and bright[y, right]:
                    right += 1
                while bottom < height and bright[bottom, x]:
                    bottom += 1
                seen[y:bottom, x:right] = True
                if right - x >= FINEST and bottom - y >= FINEST:
                    found.append(
                        [(x + right) / 2 / width, (y + bottom) / 2 / height, (right - x) / width, (bottom - y) / height]
                    )
        return torch.tensor(found, dtype=torch.float32).reshape(-1, 4)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    config = DeploymentConfig(
        model=DeformableDetrConfig(),
        transform=EvalTransformConfig(size=SIDE, square=True),
        size_divisor=1,
        max_detections=300,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        category_ids=(5, 9),
        category_names=("blob", "other"),
    )
    return Predictor(Blobs(), config, torch.device("cpu"))  # type: ignore[arg-type]


def photo(
    height: int, width: int, boxes: list[tuple[int, int, int, int]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 255
    return pixels


def test_small_objects_of_a_large_photo_are_found_once_each(predictor: Predictor) -> None:
    # 20 pixels of 4000 are less than one of the 128 that the detector is given.
    small = [(x, y, x + 20, y + 20) for x in range(37, 3900, 413) for y in range(51, 2900, 391)]
    large = (1500, 1200, 2300, 1900)
    small = [box for box in small if not (box[2] > 1450 and box[0] < 2350 and box[3] > 1150 and box[1] < 1950)]
    image = photo(3000, 4000, [*small, large])
    plain, tiled = predictor.predict(image), predictor.predict(image, tiles=400)
    assert len(plain) == 1
    assert len(tiled) == len(small) + 1
    assert len(tiled) >= 2 * len(plain)
    found = tiled.boxes_xyxy_pixels
    for box in [*small, large]:
        nearest = (found - torch.tensor(box)).abs().amax(dim=1).min()
        assert nearest <= (4 if box != large else 32), box  # a pixel of the input
    assert set(tiled.names) == {"blob"}
    assert set(tiled.category_ids) == {5}
    assert (tiled.size, tiled.source is image) == ((3000, 4000), True)


def test_an_image_no_larger_than_a_tile_is_predicted_as_ever(predictor: Predictor) -> None:
    image = photo(300, 300, [(20, 20, 90, 90)])
    plain, tiled = predictor.predict(image), predictor.predict(image, tiles=300)
    assert torch.equal(plain.boxes_xyxy_pixels, tiled.boxes_xyxy_pixels)
    assert torch.equal(plain.scores, tiled.scores)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_tiles_share_forward_passes(batch_size: int, predictor: Predictor) -> None:
    image = photo(900, 700, [(100, 100, 140, 150), (400, 600, 430, 660)])
    (found,) = predictor.predict_many([image], tiles=256, batch_size=batch_size)
    assert len(found) == 2


def test_tiles_must_have_a_side(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="tiles must be at least 1"):
        predictor.predict(photo(10, 10, []), tiles=0)
