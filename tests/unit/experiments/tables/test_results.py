"""What is read off finished runs, and how the report puts it beside the published figures."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lora_detr.errors import ConfigError
from lora_detr.experiments.tables.report import accuracy_table, markdown, mean_and_spread, table_of_runs, write_report
from lora_detr.experiments.tables.results import difference, not_comparable, read_results, reference_of
from lora_detr.experiments.tables.study import Study
from lora_detr.experiments.tables.table import Comparable
from tests.unit.experiments.tables.studies import study_in, write_run
from tests.unit.records.test_repair import TAILS


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Three of four runs are done; one of them answered with its branch."""
    found = study_in(tmp_path, steps=30)
    found.record()
    for run, last in zip(found.runs[:3], (0.30, 0.42, 0.34), strict=True):
        write_run(run, {10: 0.1, 30: last}, seconds=1.0 if run.row.name == "base" else 1.2)
    answer = found.folder / "answers" / "three-seed0-1.json"
    answer.parent.mkdir()
    answer.write_text(json.dumps({"AP": 0.44}), encoding="utf-8")
    return found


def test_results_are_those_of_the_last_evaluation_in_percent(study: Study) -> None:
    base, three = read_results(study)
    assert base.values("AP") == pytest.approx([30.0, 34.0])
    assert base.values("APs") == []  # nothing to measure
    assert three.values("AP, branch with NMS") == pytest.approx([44.0])
    assert (base.missing, three.missing) == ((), (1,))
    assert base.seconds == pytest.approx(1.0)  # the median: the first step is slow
    assert base.runs[0].curve.steps == (10, 30)
    assert base.runs[0].curve.precision == pytest.approx((10.0, 30.0))
    assert 4.9 < base.parameters < three.parameters < 5.4


def test_scaled_down_runs_are_never_called_comparable(study: Study) -> None:
    assert not_comparable(study) == [
        "small presets (--scale tiny)",
        "30 steps instead of the presets' epochs",
        "20 images for train where COCO 2017 has 118,287",
        "10 images for val where COCO 2017 has 5,000",
    ]
    text = markdown(study, read_results(study))
    assert "**Not comparable with the published figures:** small presets" in text


def test_runs_of_the_whole_of_coco_by_the_presets_are_comparable(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    paper = replace(study, settings=replace(study.settings, scale="paper"))
    write_run(paper.runs[0], {7_393: 0.4}, images=(118_287, 5_000))
    assert not_comparable(paper) == []


def test_a_table_says_what_its_figures_need(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    needs = Comparable(train_images=20, val_images=10, images_a_step=2)
    table = study.info.table.model_copy(update={"comparable": needs})
    own = replace(study, info=replace(study.info, table=table), settings=replace(study.settings, scale="paper"))
    write_run(own.runs[0], {10: 0.4})
    assert not_comparable(own) == []


def test_another_batch_is_not_comparable(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    paper = replace(study, settings=replace(study.settings, scale="paper"))
    write_run(paper.runs[0], {59_144: 0.4}, images=(118_287, 5_000))
    assert not_comparable(paper) == ["2 images per step where the paper has 16"]


def test_the_report_has_both_figures_and_every_run(study: Study) -> None:
    text = markdown(study, read_results(study))
    header, _, base, three = [line for line in text.splitlines() if line.startswith("|")][:4]
    names = [cell.strip() for cell in header.strip("|").split("|")]
    cells = [
        dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in (base, three)
    ]
    assert cells[0]["*published* AP"] == "40.0"
    assert cells[0]["AP measured"] == "32.0 ± 2.8"
    assert cells[1]["AP measured"] == "42.0"
    assert cells[1]["*published* AP, branch with NMS"] == "43.0"
    assert cells[1]["AP, branch with NMS measured"] == "44.0"
    assert (cells[0]["step time"], cells[1]["step time"]) == ("1.00", "1.20")
    assert (cells[0]["seeds"], cells[1]["seeds"]) == ("2", "1")
    assert "**Not done:** three branches (seed 1)." in text
    assert "| three branches | 42.00 | - |" in text
    assert "loradetr train --preset deformable-tiny-lora3 --aux 3 --data data --max-steps 30" in text
    assert str(study.folder) not in text  # a report is read elsewhere


def test_rows_are_compared_seed_by_seed(study: Study) -> None:
    """By hand: differences 12 and 6 have mean 9 and deviation 3 sqrt 2; t is 12.706 with one degree of freedom."""
    write_run(study.runs[3], {30: 0.40})
    base, three = read_results(study)
    found = difference(three, base, "AP")
    assert found.each == pytest.approx((12.0, 6.0))
    assert found.mean == pytest.approx(9.0)
    assert found.margin == pytest.approx(12.706 * 3, rel=1e-4)
    text = markdown(study, [base, three])
    assert "AP against base" in text
    assert "| +9.0 ± 38.1 |" in text


def test_a_seed_that_one_row_lacks_is_left_out_of_the_comparison(study: Study) -> None:
    base, three = read_results(study)
    found = difference(three, base, "AP")
    assert found.each == pytest.approx((12.0,))
    assert math.isnan(found.margin)
    assert "| +12.0 |" in markdown(study, [base, three])


def test_another_row_may_be_the_one_that_others_are_compared_with(study: Study) -> None:
    own = study.compared_with("three")
    text = markdown(own, read_results(own))
    assert "AP against three" in text
    assert "| -12.0 |" in text
    with pytest.raises(ConfigError, match="did you mean 'three'"):
        study.compared_with("tree")


def test_other_answers_are_compared_too_where_the_reference_has_them(study: Study) -> None:
    own = study.compared_with("three")
    head, cells = accuracy_table(own, read_results(own))
    assert head.index("AP, branch with NMS against three") == head.index("AP against three") + 1
    assert cells[0][head.index("AP, branch with NMS against three")] == "-"  # the other row has no branch
    head, _ = accuracy_table(study, read_results(study))
    assert "AP, branch with NMS against base" not in head


def test_nothing_is_compared_with_a_row_that_is_not_there(study: Study) -> None:
    _, three = read_results(study)
    assert reference_of(study, [three]) is None
    assert "AP against base" not in markdown(study, [three])


def test_a_terminal_gets_short_names_and_few_columns(study: Study) -> None:
    head, cells = accuracy_table(study, read_results(study), brief=True)
    assert [row[0] for row in cells] == ["base", "three"]
    assert "AP50 measured" in head
    assert "AP75 measured" not in head
    assert "*published* AP, branch with NMS" in head


def test_the_table_of_runs_has_a_line_for_each(study: Study) -> None:
    rows = list(csv.DictReader(io.StringIO(table_of_runs(study, read_results(study)))))
    assert [(row["row"], row["seed"], row["done"]) for row in rows] == [
        ("base", "0", "1"),
        ("base", "1", "1"),
        ("three", "0", "1"),
        ("three", "1", "0"),
    ]
    assert float(rows[0]["AP"]) == pytest.approx(30.0)
    assert rows[0]["published AP"] == "40.0"
    assert rows[3]["AP"] == ""


def test_the_report_is_written_with_a_picture(study: Study) -> None:
    written = write_report(study, read_results(study))
    assert [path.name for path in written] == ["report.md", "report.csv", "report.png"]
    assert written[2].read_bytes().startswith(b"\x89PNG")
    assert "(report.png)" in written[0].read_text(encoding="utf-8")


def test_a_study_without_a_finished_run_is_reported_too(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.record()
    written = write_report(study, read_results(study))
    assert [path.name for path in written] == ["report.md", "report.csv"]
    assert "**Not done:** base (seeds 0, 1)" in written[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "text"), [([], "-"), ([12.34], "12.3"), ([10.0, 20.0], "15.0 ± 7.1"), ([1.0, 2.0, 3.0], "2.0 ± 1.0")]
)
def test_spread_is_the_sample_standard_deviation(values: list[float], text: str) -> None:
    assert mean_and_spread(values) == text


@pytest.mark.parametrize("damage", TAILS)
def test_a_report_of_damaged_logs_has_what_is_whole(damage: str, study: Study) -> None:
    for run in study.runs[:3]:
        for name in ("results.csv", "metrics.jsonl", "data_report.json"):
            TAILS[damage](run.folder / name)
    base, three = read_results(study)
    assert (base.values("AP"), three.values("AP")) == (pytest.approx([30.0, 34.0]), pytest.approx([42.0]))
    assert base.seconds == pytest.approx(1.0)
    write_report(study, [base, three])


def test_a_last_evaluation_whose_row_is_cut_off_is_taken_from_its_folder(study: Study) -> None:
    first, _, second = study.runs[:3]
    for run in (first, second):
        path = run.folder / "results.csv"
        path.write_bytes(path.read_bytes()[:-3])
    (first.folder / "eval").mkdir()
    (first.folder / "eval" / "metrics.json").write_text(json.dumps({"checkpoint": "step-00000030", "AP": 0.3}))
    path.write_bytes(bytes(200))
    base, three = read_results(study)
    assert base.values("AP") == pytest.approx([30.0])  # of the second, nothing is known
    write_report(study, [base, three])
