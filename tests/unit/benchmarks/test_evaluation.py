"""The made-up evaluation, and that all ways of computing it agree."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import evaluation
from benchmarks.evaluation import (
    COMPUTE,
    FIRST_BACKEND,
    Case,
    backend_rows,
    backends,
    by_backend,
    own_rows,
    synthetic_case,
)


@pytest.fixture(scope="module")
def case() -> Case:
    return synthetic_case(12, 10)


def test_made_up_data(case: Case) -> None:
    assert len(case.split) == len(case.found) == 12
    assert len(case.split.categories.ids) == 80
    for detections in case.found.values():
        scores, boxes = detections.scores, detections.boxes_xyxy_pixels
        assert len(scores) == 10
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert 0 < float(scores.min()) <= float(scores.max()) <= 1
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    again, other = synthetic_case(12, 10), synthetic_case(12, 10, seed=1)
    assert torch.equal(again.found[1].boxes_xyxy_pixels, case.found[1].boxes_xyxy_pixels)
    assert not torch.equal(other.found[1].boxes_xyxy_pixels, case.found[1].boxes_xyxy_pixels)


def test_the_first_images_with_what_belongs_to_them(case: Case) -> None:
    part = case.first(3)
    truth, found = part.evaluator().datasets()
    assert {row["image_id"] for row in truth["annotations"]} == {0, 1, 2}  # by place
    assert set(part.found) == {1, 2, 3}
    assert len(found["annotations"]) == 30
    assert [row["id"] for row in found["annotations"]] == list(range(1, 31))  # 0 would stand for no match


def test_all_ways_give_the_same_numbers(case: Case) -> None:
    rows = {row["way"]: row for row in backend_rows(case, rounds=1)}
    assert set(rows) == {*backends(), COMPUTE}
    assert rows[FIRST_BACKEND]["ratio"] == 1
    assert 0 < rows[COMPUTE]["AP"] < 1
    assert {row["difference"] for row in rows.values()} == {0}
    assert len({tuple(row) for row in rows.values()}) == 1


def test_packages_get_the_same_entries(case: Case) -> None:
    evaluator = case.evaluator()
    truth, found = evaluator.datasets()
    by_backend(FIRST_BACKEND, evaluator)
    assert (truth, found) == evaluator.datasets()


def test_a_way_that_differs_is_seen(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = evaluation.by_evaluator

    def shifted(evaluator: evaluation.CocoEvaluator) -> evaluation.Measured:
        measured = exact(evaluator)
        return evaluation.Measured(None, measured.evaluate, (*measured.values[:-1], measured.values[-1] + 0.25))

    monkeypatch.setattr(evaluation, "by_evaluator", shifted)
    rows = {row["way"]: row for row in backend_rows(case, rounds=1)}
    assert rows[COMPUTE]["difference"] == pytest.approx(0.25)
    assert rows[FIRST_BACKEND]["difference"] == 0


def test_own_part_at_three_sizes(case: Case) -> None:
    rows = own_rows(case, rounds=1)
    assert [row["images"] for row in rows] == [3, 6, 12] * 3
    for row in rows:
        assert row["lowest"] <= row["ratio"] <= row["highest"]
        if row["images"] == 3:
            assert row["ratio"] == 1


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--images", "4", "--detections", "5", "--json"])
    evaluation.main()
    content = json.loads(capsys.readouterr().out)
    assert content["options"]["images"] == 4
    assert content["rows"][0]["way"] == FIRST_BACKEND
