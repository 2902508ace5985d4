"""What is recomputed, and the rows that are given of it."""

from __future__ import annotations

import pytest

from benchmarks import recompute
from benchmarks.recompute import VARIANTS
from benchmarks.steps import Inputs, Subject
from lora_detr.models import TwoStageDetector

SYSTEM, INPUTS = "deformable-tiny-lora3", Inputs((64, 64), 1, 2)


def test_a_row_for_each_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, parts_of = [], []
    exact = recompute.recompute

    def noted(detector: TwoStageDetector, parts: tuple[str, ...]) -> None:
        parts_of.append(parts)
        exact(detector, parts)

    monkeypatch.setattr(recompute, "recompute", noted)
    monkeypatch.setattr(recompute, "megabytes_alone", lambda script, options: asked.append(options) or 5.0)
    found = recompute.rows(SYSTEM, INPUTS, 1)
    assert parts_of == list(VARIANTS)
    assert [options[-1] for options in asked] == [",".join(parts) for parts in VARIANTS]
    assert [row["recomputed"] for row in found][:2] == ["nothing", "backbone"]
    assert (found[0]["ratio"], found[0]["memory_mb"]) == (1, 5.0)


def test_a_subject_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = recompute.subject_of(SYSTEM, INPUTS, VARIANTS[-1])
    assert isinstance(subject, Subject)
    before = [parameter.detach().clone() for parameter in subject.model.detector.heads.parameters()]
    subject.step()
    after = subject.model.detector.heads.parameters()
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
