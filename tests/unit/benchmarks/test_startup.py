"""The commands that are measured, and what is said of their imports."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.startup import Imported, code_of, commands, imported, main, measure, run


def test_every_command_is_there_once() -> None:
    lines = commands()
    assert len(set(lines)) == len(lines)
    for line in (("--help",), ("train", "--help"), ("config", "--help"), ("config", "diff", "--help")):
        assert line in lines
    assert [line for line in lines if "--help" not in line] == [("config", "list")]


def test_imports_are_those_of_the_program() -> None:
    nothing = imported("pass")
    assert not nothing.torch
    assert imported("import sys; sys.modules['torch'] = sys") == Imported(nothing.modules + 1, torch=True)


def test_help_imports_no_torch() -> None:
    found = imported(code_of(("--help",)))
    assert not found.torch
    assert found.modules > imported("import typer").modules


def test_a_command_that_fails_ends_the_measurement() -> None:
    with pytest.raises(SystemExit, match="nonsense"):
        run(code_of(("nonsense",)))


def test_rows() -> None:
    nothing, listed = measure([("config", "list")], rounds=2)
    assert (nothing["command"], nothing["ratio"]) == ("python -c pass", 1)
    assert (listed["command"], listed["torch"]) == ("loradetr config list", False)
    assert listed["lowest"] <= listed["ratio"] <= listed["highest"]
    assert listed["modules"] > nothing["modules"]


def test_json_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["startup.py", "--only", "strip", "--rounds", "1", "--json"])
    main()
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert [row["command"] for row in content["rows"]] == ["python -c pass", "loradetr strip --help"]
    assert content["options"]["only"] == "strip"
    assert printed.err == ""
