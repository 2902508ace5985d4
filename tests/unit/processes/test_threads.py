"""Threads wait shortly where other programs are busy, unless the user has chosen; slow steps are noticed."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from lora_detr.processes import threads
from lora_detr.training.pace import STEPS, Pace


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*threads.VARIABLES, "RANK"):
        monkeypatch.setenv(variable, "")  # so that what a test sets is taken back
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("load", "chosen"), [("0.1 0.2 0.3 1/400 77", ""), ("0.1 0.2 0.3 3/400 77", "10000"), ("?", "")]
)
def test_the_load_decides(load: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loadavg").write_text(load)
    monkeypatch.setattr(threads, "LOAD", tmp_path / "loadavg")
    threads.choose_waiting()
    assert threads.os.environ.get("GOMP_SPINCOUNT", "") == chosen
    assert ("other programs are busy" in threads.describe_threads(2)) == bool(chosen)
    assert threads.describe_threads(1) == "1 thread"


@pytest.mark.parametrize("variable", [*threads.VARIABLES, "RANK"])
def test_who_has_chosen_keeps_it(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(threads, "others_are_busy", lambda: True)
    threads.choose_waiting()
    assert {name for name in threads.VARIABLES if name in threads.os.environ} == {variable} - {"RANK"}


def _spin() -> None:
    while True:
        pass


def test_a_busy_program_is_seen() -> None:
    if not threads.LOAD.exists():
        pytest.skip("this system does not tell what is running")
    programs = [multiprocessing.get_context("fork").Process(target=_spin, daemon=True) for _ in range(3)]
    for program in programs:
        program.start()
    try:
        assert threads.others_are_busy()
    finally:
        for program in programs:
            program.kill()
            program.join()


def test_slow_steps_are_reported_once() -> None:
    pace = Pace(0.1)
    lines = [pace.add(0.5) for _ in range(3 * STEPS)]
    assert [i for i, line in enumerate(lines) if line] == [STEPS - 1]
    assert "a step takes 0.50 s, 5 times what one took before the start (0.10 s)" in lines[STEPS - 1]


@pytest.mark.parametrize(("expected", "seconds"), [(0.1, 0.25), (None, 9.0)])
def test_other_steps_are_not(expected: float | None, seconds: float) -> None:
    pace = Pace(expected)
    assert not any(pace.add(seconds) for _ in range(3 * STEPS))
