"""Predictions in the types of other packages; each test runs where the package is installed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.unit.evaluation.test_predictor import answering, noise

BOXES = [[0.5, 0.5, 0.5, 0.5], [0.0, 0.5, 0.5, 0.4]]


def test_objects_are_given_as_supervision_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("supervision")
    module.Detections = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    found = answering([[0.1, 0.9, 0.1], [0.6, 0.1, 0.1]], BOXES).predict(noise(30, 40)).to_supervision()
    assert found.xyxy.tolist() == [[10, 7.5, 30, 22.5], [0, 9, 10, 21]]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.6], abs=1e-6)
    assert found.class_id.tolist() == [1, 0]
    assert found.data["class_name"].tolist() == ["wbc", "rbc"]
    assert found.data["category_id"].tolist() == [11, 3]


@pytest.mark.parametrize("scores", [[[0.1, 0.9, 0.1], [0.6, 0.1, 0.1]], [[0.1, 0.1, 0.1]] * 2])
def test_supervision_itself_takes_them(scores: list[list[float]]) -> None:
    supervision = pytest.importorskip("supervision")
    predicted = answering(scores, BOXES).predict(noise(30, 40))
    found = predicted.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert len(found) == len(predicted)
    assert len(found.with_nms(0.5)) == len(predicted)
    assert len(found[found.confidence > 0.7]) == sum(score > 0.7 for score in predicted.scores.tolist())
    assert [str(name) for name in found["class_name"]] == list(predicted.names)
