"""Detections of every stored case, with and without suppression."""

from __future__ import annotations

import pytest
import torch

from lora_detr.evaluation.postprocess import postprocess
from lora_detr.recipe.preparation import Suppression
from lora_detr.structures import Prediction
from tests.golden.store import case, cases, require, tensors_of

SUPPRESSION: dict[str, Suppression] = {"postprocess": "per-class", "postprocess_relation": "any-class"}
"""What each family takes for a duplicate."""


@pytest.mark.parametrize("family", SUPPRESSION)
def test_values_exist(family: str) -> None:
    require(cases(family), family)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in SUPPRESSION for name in cases(family)])
def test_detections(family: str, name: str) -> None:
    entry, tensors = case(family, name), tensors_of(family, name)
    results = postprocess(
        Prediction(tensors["pred_logits"], tensors["pred_boxes"]),
        tensors["orig_size_hw"],
        max_detections=entry["topk"],
        nms_iou=entry["nms_iou_threshold"],
        suppression=SUPPRESSION[family],
        min_score=entry.get("confidence_score"),
    )
    assert [len(found.scores) for found in results] == entry["num_out"]
    for image, found in enumerate(results):
        scores = tensors[f"img{image}/scores"]
        assert torch.allclose(found.scores, scores, rtol=0, atol=1e-6)
        # Entries whose scores are closer than float noise may stand in either order.
        gaps = (scores[1:] - scores[:-1]).abs() > 1e-6
        fixed = torch.ones(len(scores), dtype=torch.bool)
        fixed[1:] &= gaps
        fixed[:-1] &= gaps
        assert fixed.float().mean() > 0.9
        assert torch.equal(found.labels[fixed], tensors[f"img{image}/labels"][fixed])
        assert torch.allclose(found.boxes_xyxy_pixels[fixed], tensors[f"img{image}/boxes"][fixed], rtol=0, atol=1e-2)
        assert sorted(found.labels.tolist()) == sorted(tensors[f"img{image}/labels"].tolist())
