"""Overlap of branches against gain, and mixes against their parts, on made-up runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from lora_detr.experiments.tables.overlap import (
    FIGURES,
    correlate,
    correlation_in_words,
    overlap_section,
    points,
    read_overlaps,
)
from lora_detr.experiments.tables.report import write_report
from lora_detr.experiments.tables.results import read_results
from lora_detr.experiments.tables.study import Settings, Study
from lora_detr.experiments.tables.table import read_table
from tests.unit.experiments.tables.studies import write_run

BRANCHES = {
    "control": [],
    "single": ["topk:k=6"],
    "topk": ["topk:k=6", "topk:k=6"],
    "iou": ["max-iou", "max-iou"],
    "k": ["topk:k=6", "topk:k=4"],
    "mix": ["topk:k=6", "max-iou"],
}

OVERLAPS = {"mix": 0.1, "k": 0.2, "iou": 0.3, "topk": 0.4}
GAINS = {"single": (9, 9), "mix": (2, 4), "k": (1, 1), "iou": (2, 2), "topk": (0, 0)}
"""Points of AP ahead of the control, by seed: 3, 1, 2 and 0 on average."""


@pytest.fixture(autouse=True)
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build no model to count its parameters, which takes most of the time of a report."""
    monkeypatch.setattr("lora_detr.experiments.tables.results.parameters", lambda *_: 5.0)


def study_in(
    folder: Path, overlaps: Mapping[str, float | None] = OVERLAPS, gains: Mapping[str, tuple[int, int]] = GAINS
) -> Study:
    """Return a study of two seeds whose control is at AP 30 and 32; rows without an overlap have no diagnostics."""
    rows = [
        {"name": name, "label": f"row {name}", "options": {"preset": "deformable-tiny-lora3", "branches": branches}}
        for name, branches in BRANCHES.items()
    ]
    rows[0]["options"] = {"preset": "deformable-tiny-lora3", "aux": 0}
    for row in rows:
        row["tiny"] = {"preset": "deformable-tiny-lora3"}
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"title": "Mine", "rows": rows}), encoding="utf-8")
    info = read_table(path)
    study = Study(info, Settings("tiny", folder / "data"), tuple(info.table.at("tiny")), (0, 1), folder / "study")
    for run in study.runs:
        write_run(run, {30: (30 + 2 * run.seed + gains.get(run.row.name, (0, 0))[run.seed]) / 100})
        overlap = overlaps.get(run.row.name)
        if overlap is not None:
            # Layers and seeds differ by as much up as down; the first step is of the first half of the run.
            middle = overlap + (0.02 if run.seed else -0.02)
            found = {10: [0.9, 0.9], 20: [middle - 0.01, middle + 0.03], 30: [middle - 0.05, middle + 0.03]}
            lines = [
                json.dumps({"step": step, "jaccard": {"primary|branch0": [0.8, 0.8], "branch0|branch1": both}})
                for step, both in found.items()
            ]
            (run.folder / "diagnostics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return study


def section(study: Study) -> str:
    return "\n".join(overlap_section(study, read_overlaps(study, read_results(study))))


def test_overlap_and_gain_of_every_row_with_two_branches(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    overlaps = read_overlaps(study, read_results(study))
    found = {row.result.row.name: (row.diversity, row.overlap, row.gains["AP"].mean) for row in overlaps}
    assert found == {
        "topk": ("none", pytest.approx(0.4), pytest.approx(0)),
        "iou": ("none", pytest.approx(0.3), pytest.approx(2)),
        "k": ("settings", pytest.approx(0.2), pytest.approx(1)),
        "mix": ("rules", pytest.approx(0.1), pytest.approx(3)),
    }
    # Deviations of overlap: -0.15, -0.05, 0.05, 0.15; of gain: 1.5, -0.5, 0.5, -1.5. Products add up to -0.4, squares
    # to 0.05 and 5: r = -0.4 / sqrt(0.25) = -0.8. Fisher: z = atanh(-0.8) = -ln 3 = -1.0986, 1.96 / sqrt(4 - 3) either
    # way: -3.0586 and 0.8614, whose tanh are -0.9956 and 0.6970.
    correlation = correlate([row.overlap for row in overlaps], [row.gains["AP"].mean for row in overlaps])
    assert correlation is not None
    assert (correlation.value, correlation.low, correlation.high) == pytest.approx((-0.8, -0.9956, 0.6970), abs=1e-4)
    text = correlation_in_words(overlaps, "AP")
    assert text == "r = -0.80, 95 % interval -1.00 to 0.70, 4 rows, not significant"


def test_a_mix_is_compared_with_its_parts_and_kinds_of_diversity_with_each_other(tmp_path: Path) -> None:
    """Parts of the mix are 1 ahead at both seeds, the mix 2 and 4: 1 and 3 more, 2 ± 12.706 sqrt(2) / sqrt(2)."""
    text = section(study_in(tmp_path))
    assert "| row mix | different rules | 0.100 | +3.0 ± 12.7 | - | +2.0 ± 12.7 | - |" in text
    assert "| row k | one rule, different settings | 0.200 | +1.0 ± 0.0 | - | - | - |" in text  # no row of two k = 4
    assert "| row topk | identical branches | 0.400 | +0.0 ± 0.0 | - | - | - |" in text
    assert "row single" not in text
    # Rows of identical branches are 1 ahead on average, and so is the row of different k.
    assert "Different rules (1 row) against one rule, different settings (1 row): AP +2.0 ± 12.7" in text
    assert "Different rules (1 row) against identical branches (2 rows): AP +2.0 ± 12.7 (2 seeds)" in text


@pytest.mark.parametrize(
    ("overlaps", "gains", "words"),
    [
        ({}, GAINS, "Overlap is not known: no run has diagnostics (`--set train.diagnostics=50` records them)."),
        ({"mix": 0.1, "k": 0.2, "iou": 0.3}, GAINS, "no correlation: 3 rows with both figures, at least 4 are needed."),
        (dict.fromkeys(OVERLAPS, 0.3), GAINS, "no correlation: the overlap is the same in all 4 rows."),
        (OVERLAPS, {}, "no correlation: the gain is the same in all 4 rows."),
        (
            OVERLAPS,
            {"mix": (4, 4), "k": (3, 3), "iou": (2, 2), "topk": (1, 1)},
            "r = -1.00, 95 % interval -1.00 to -1.00",
        ),
    ],
)
def test_what_cannot_be_correlated_is_explained(
    overlaps: Mapping[str, float], gains: Mapping[str, tuple[int, int]], words: str, tmp_path: Path
) -> None:
    assert words in section(study_in(tmp_path, overlaps, gains))


def test_without_diagnostics_there_is_no_picture_of_overlap(tmp_path: Path) -> None:
    study = study_in(tmp_path, {})
    assert "overlap.png" not in {path.name for path in write_report(study, read_results(study))}


def test_without_the_control_nothing_is_ahead_of_it(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    results = read_results(study)[2:]
    overlaps = read_overlaps(study, results)
    assert [points(overlaps, figure) for figure in FIGURES] == [[], []]
    text = "\n".join(overlap_section(study, overlaps))
    assert "| row mix | different rules | 0.100 | - | - | +2.0 ± 12.7 | - |" in text
    assert "no correlation: 0 rows with both figures" in text


def test_a_study_without_two_branches_has_nothing_about_diversity(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    assert overlap_section(study, read_overlaps(study, read_results(study)[:2])) == []


def test_the_report_shows_the_picture(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    write_report(study, read_results(study))
    assert "![Overlap of branches against gain](overlap.png)" in (study.folder / "report.md").read_text(
        encoding="utf-8"
    )
    with Image.open(study.folder / "overlap.png") as picture:
        assert picture.size == (1250, 490)


def test_positives_that_never_existed_leave_the_overlap_unknown(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    for seed in (0, 1):
        line = json.dumps({"step": 30, "jaccard": {"branch0|branch1": [None, None]}})
        (study.folder / "mix" / f"seed{seed}" / "diagnostics.jsonl").write_text(line + "\n", encoding="utf-8")
    assert "| row mix | different rules | - | +3.0 ± 12.7 |" in section(study)
