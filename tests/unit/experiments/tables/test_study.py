"""What a study records, and what its runs are started with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lora_detr.errors import ConfigError, OutputError
from lora_detr.experiments.tables.study import RECORD, read_study
from tests.unit.experiments.tables.studies import study_in


def test_runs_go_seed_by_seed_into_folders_of_their_own(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    assert [run.name for run in study.runs] == ["base-seed0", "three-seed0", "base-seed1", "three-seed1"]
    assert study.runs[3].folder == tmp_path / "study" / "three" / "seed1"


def test_a_run_is_a_command_that_a_user_could_type(tmp_path: Path) -> None:
    study = study_in(tmp_path, steps=7, evaluate_every=2, overrides=("train.batch_size=4",))
    run = study.runs[1]
    assert study.train_command(run) == [
        *("train", "--preset", "deformable-tiny-lora3", "--aux", "3"),
        *("--data", str(tmp_path / "data"), "--max-steps", "7", "--epochs", "1000000"),
        *("--set", "evaluation.every=2", "--set", "train.batch_size=4"),
        *("--seed", "0", "--output-dir", str(run.folder), "--auto-resume"),
    ]
    (question,) = study.questions(run)
    assert question.answer.name == "branch with NMS"
    assert question.file == study.folder / "answers" / "three-seed0-1.json"
    asked = ("--checkpoint", "last", "--branch", "0", "--nms", "0.7", "--json")
    assert question.arguments == ("eval", str(run.folder), *asked)
    assert study.questions(study.runs[0]) == []  # it has no branch to ask


def test_what_was_asked_for_can_be_read_again(tmp_path: Path) -> None:
    study = study_in(tmp_path, steps=7, overrides=("train.batch_size=4",))
    study.record()
    assert read_study(study.folder) == study


def test_seeds_and_rows_may_be_added(tmp_path: Path) -> None:
    study = study_in(tmp_path, seeds=[0])
    replace(study, rows=study.rows[:1]).record()
    replace(study, seeds=(2,)).record()
    found = read_study(study.folder)
    assert ([row.name for row in found.rows], found.seeds) == (["base", "three"], (0, 2))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    study_in(tmp_path, steps=7).record()
    with pytest.raises(ConfigError, match="other settings"):
        study_in(tmp_path, steps=8).record()


def test_a_row_that_now_means_something_else_is_refused(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.record()
    path = study.folder / "study.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["rows"]["three"][-1] = "2"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="row three were trained with other options"):
        study.record()


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    study = study_in(tmp_path)
    study.record()
    (study.folder / "study.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study\.json: damaged"):
        read_study(study.folder)


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of an ablation"):
        read_study(tmp_path)


def test_the_command_of_a_study_names_its_rows_where_they_are_not_all(tmp_path: Path) -> None:
    study = study_in(tmp_path, steps=7)
    assert "--rows" not in study.command()
    table = tmp_path / "mine.yaml"
    assert study.command() == f"loradetr ablate run {table} --scale tiny --data data --seeds 0,1 --max-steps 7"
    assert replace(study, rows=study.rows[1:]).command().endswith("--rows three")


def test_a_record_that_the_system_refuses_to_read_is_an_output_error(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    (study.folder / RECORD).mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be read: Is a directory") as caught:
        study.record()
    assert caught.value.remedy == "check its permissions"
