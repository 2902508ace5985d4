"""Collecting detections of a data set."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from lora_detr.errors import NumericalError
from lora_detr.evaluation.detect import collect
from lora_detr.structures import Batch, Images, Prediction, Target


@pytest.mark.parametrize(("part", "value"), [("logits", "nan"), ("logits", "inf"), ("boxes", "nan")])
def test_a_prediction_that_is_not_finite_is_no_detection_n01(part: str, value: str) -> None:
    """A box of NaN overlaps nothing and everything: counted, it raised the score."""
    found = {"logits": torch.zeros(2, 3, 4), "boxes": torch.full((2, 3, 4), 0.5)}
    found[part][1, 2, 0] = float(value)
    targets = tuple(Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), i, (8, 8)) for i in (7, 42))
    batch = Batch(Images(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8).bool(), torch.full((2, 2), 8)), targets)
    evaluator = Mock()
    with pytest.raises(NumericalError, match=r"not finite for image 42\n"):
        collect(lambda images: Prediction(**found), [batch], {None: evaluator}, torch.device("cpu"), max_detections=5)
    evaluator.add.assert_not_called()
