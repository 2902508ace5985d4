"""The harness: a log can be continued, a failure is kept, and a summary counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from lora_detr.json_value import JSON
from tests.soak import __main__ as command
from tests.soak.harness import Part, append_result, read_log, run_trial, summary, use_scratch


def sevens_fail(trial: int, folder: Path) -> Mapping[str, JSON]:
    assert not list(folder.iterdir())
    (folder / "file").touch()
    assert trial != 7, "seven"
    return {"trial": trial, "kind": "odd" if trial % 2 else "even"}


PART = Part("sevens", 10, 1, sevens_fail, "all but one hold")


@pytest.fixture(autouse=True)
def _known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    use_scratch(tmp_path / "scratch")
    monkeypatch.setitem(command.PARTS, PART.name, PART)
    monkeypatch.setattr(command, "LOGS", tmp_path)


def test_a_log_is_continued_and_a_torn_line_run_again(tmp_path: Path) -> None:
    log = tmp_path / "sevens.jsonl"
    assert command.run_part("sevens", 3, log, jobs=1, again=False)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:30])
    assert sorted(read_log(log)) == [0, 1]
    assert command.run_part("sevens", 4, log, jobs=1, again=False)
    assert [json.loads(line)["trial"] for line in log.read_text().splitlines()] == [0, 1, 2, 3]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_failure_is_kept_until_it_is_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "sevens.jsonl"
    assert not command.run_part("sevens", None, log, jobs=1, again=False)
    captured = capsys.readouterr()
    assert "trial 7 failed" in captured.err
    assert "AssertionError: seven" in captured.err
    assert captured.out.startswith("sevens: 10 trials, 1 failures; seconds 0")
    assert not command.run_part("sevens", None, log, jobs=1, again=False)
    assert len(log.read_text().splitlines()) == 10
    assert not command.run_part("sevens", None, log, jobs=1, again=True)
    assert len(log.read_text().splitlines()) == 11
    assert "| sevens | 10 of 10 | 1 |" in command.report(tmp_path)


def test_a_failed_expectation_of_pytest_is_a_failure_of_the_trial() -> None:
    def expects(trial: int, folder: Path) -> Mapping[str, JSON]:
        with pytest.raises(ValueError):
            pass
        return {}

    assert "DID NOT RAISE" in run_trial(Part("x", 1, 1, expects, ""), 0).error


def test_facts_are_summed_up(tmp_path: Path) -> None:
    for trial in (0, 1, 2):
        append_result(tmp_path / "log", run_trial(PART, trial))
    line = summary("sevens", read_log(tmp_path / "log").values())
    assert line.endswith("; trial 0/1/2; kind: even 2, odd 1")
