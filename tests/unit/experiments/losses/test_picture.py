"""Pictures of losses show every curve that there is."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageColor

from lora_detr.experiments.losses.curves import Band
from lora_detr.experiments.losses.picture import draw_bands
from lora_detr.records.diagrams import BLUE


@pytest.mark.parametrize("values", [[0.005], [0.2, 0.2, 0.2], [3.0, 2.0, 1.0]])
def test_a_single_point_and_a_level_curve_are_seen(values: Sequence[float]) -> None:
    band = Band("mine", np.arange(1.0, len(values) + 1), np.array([values]))
    drawn = draw_bands([("AP", [band])], "Primary path", "not smoothed")
    picture = np.asarray(Image.open(io.BytesIO(drawn[".png"])).convert("RGB")).astype(int)
    panel = picture[:, : int(picture.shape[1] * 0.65)]  # left of the legend
    near = np.abs(panel - np.array(ImageColor.getrgb(BLUE))).max(-1) < 8
    assert near.sum() > 10
    words = re.findall("<!-- (.*?) -->", drawn[".svg"].decode())
    assert "epoch" in words
    assert not [
        word for word in words if "\N{MINUS SIGN}" in word
    ]  # all values are positive, and no 1e-12 beside an axis
