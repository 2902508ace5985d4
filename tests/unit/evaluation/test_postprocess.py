"""Selection of detections against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from lora_detr.evaluation.postprocess import postprocess
from lora_detr.structures import Prediction

SIZES = torch.tensor([[40, 60], [100, 80]])


def _prediction(queries: int = 9, classes: int = 4) -> Prediction:
    boxes = torch.rand((2, queries, 4)) * 0.4 + 0.2
    return Prediction(torch.randn((2, queries, classes)), boxes)


@pytest.mark.parametrize("kept", [1, 7, 36, 100])
def test_equals_a_plain_loop(kept: int) -> None:
    prediction = _prediction()
    for image, found in enumerate(postprocess(prediction, SIZES, max_detections=kept)):
        height, width = SIZES[image].tolist()
        entries = [(float(prediction.logits[image, q, c].sigmoid()), q, c) for q in range(9) for c in range(4)]
        entries.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
        assert len(found.scores) == min(kept, 36)
        for i, (score, query, label) in enumerate(entries[:kept]):
            cx, cy, w, h = prediction.boxes[image, query].tolist()
            corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
            assert (int(found.queries[i]), int(found.labels[i])) == (query, label)
            assert float(found.scores[i]) == pytest.approx(score, abs=1e-6)
            assert found.boxes_xyxy_pixels[i].tolist() == pytest.approx(corners, abs=1e-4)


def test_ties_go_to_the_lower_query_then_class_r6() -> None:
    prediction = Prediction(torch.zeros((2, 50, 3)), torch.rand((2, 50, 4)))
    found = postprocess(prediction, SIZES, max_detections=10)[0]
    assert found.queries.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert found.labels.tolist() == [0, 1, 2] * 3 + [0]


@pytest.mark.parametrize("queries", [6, 3000])  # torchvision suppresses large sets in another way
def test_suppression_is_by_class(queries: int) -> None:
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(2, queries, 4)
    logits = torch.linspace(3, -3, queries)[:, None].repeat(1, 2) + torch.tensor([0.5, 0.0])
    found = postprocess(Prediction(logits.expand(2, -1, -1), boxes), SIZES, max_detections=5, nms_iou=0.7)[1]
    assert found.labels.tolist() == [0, 1]
    assert found.queries.tolist() == [0, 0]


def test_suppression_of_distinct_boxes_changes_nothing() -> None:
    centres = torch.linspace(0.05, 0.95, 9)
    boxes = torch.stack((centres, centres, torch.full((9,), 0.05), torch.full((9,), 0.05)), dim=1)
    prediction = Prediction(torch.randn((2, 9, 4)), boxes.expand(2, -1, -1))
    plain = postprocess(prediction, SIZES, max_detections=20)
    suppressed = postprocess(prediction, SIZES, max_detections=20, nms_iou=0.5)
    for a, b in zip(plain, suppressed, strict=True):
        assert torch.equal(a.queries, b.queries)
        assert torch.equal(a.boxes_xyxy_pixels, b.boxes_xyxy_pixels)


@pytest.mark.parametrize("kept", [1, 7, 36, 100])
@pytest.mark.parametrize("min_score", [None, 0.0, 0.5])
def test_suppression_of_any_class_equals_a_plain_loop(kept: int, min_score: float | None) -> None:
    prediction = _prediction()
    plain = postprocess(prediction, SIZES, max_detections=kept)
    found = postprocess(
        prediction, SIZES, max_detections=kept, nms_iou=0.3, suppression="any-class", min_score=min_score
    )
    for all_of_image, left in zip(plain, found, strict=True):
        overlaps = box_iou(all_of_image.boxes_xyxy_pixels, all_of_image.boxes_xyxy_pixels)
        expected: list[int] = []
        for i in range(len(all_of_image.scores)):
            if not any(overlaps[i, better] > 0.3 for better in expected):
                expected.append(i)
        expected = [i for i in expected if min_score is None or all_of_image.scores[i] > min_score]
        assert torch.equal(left.queries, all_of_image.queries[expected])
        assert torch.equal(left.labels, all_of_image.labels[expected])
        assert torch.equal(left.scores, all_of_image.scores[expected])
        assert torch.equal(left.boxes_xyxy_pixels, all_of_image.boxes_xyxy_pixels[expected])


def test_only_suppression_by_class_takes_the_next_best_instead() -> None:
    # Two queries on one place, the third elsewhere; each has its own class and the scores fall.
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    logits = torch.tensor([[3.0, -9.0], [2.0, -9.0], [1.0, -9.0]])
    prediction = Prediction(logits.expand(2, -1, -1), boxes.expand(2, -1, -1))
    by_class = postprocess(prediction, SIZES, max_detections=2, nms_iou=0.7)
    of_any = postprocess(prediction, SIZES, max_detections=2, nms_iou=0.7, suppression="any-class")
    assert [found.queries.tolist() for found in by_class] == [[0, 2]] * 2
    assert [found.queries.tolist() for found in of_any] == [[0]] * 2


def test_a_score_must_be_above_the_limit() -> None:
    prediction = Prediction(torch.tensor([[[0.0, 1.0, -1.0]]]).expand(2, -1, -1), torch.rand(2, 1, 4))
    for nms_iou in (None, 1.0):
        found = postprocess(prediction, SIZES, max_detections=3, nms_iou=nms_iou, min_score=0.5)
        assert [image.labels.tolist() for image in found] == [[1], [1]]
    assert all(len(image.scores) == 0 for image in postprocess(prediction, SIZES, max_detections=3, min_score=0.9))


def test_half_precision_gives_float32() -> None:
    prediction = _prediction()
    low = Prediction(prediction.logits.bfloat16().requires_grad_(), prediction.boxes.bfloat16())
    found = postprocess(low, SIZES, max_detections=3)[0]
    assert found.scores.dtype == found.boxes_xyxy_pixels.dtype == torch.float32
    assert not found.scores.requires_grad


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="max_detections"):
        postprocess(_prediction(), SIZES, max_detections=0)
    with pytest.raises(ValueError, match="original_sizes"):
        postprocess(_prediction(), SIZES[:1], max_detections=5)
