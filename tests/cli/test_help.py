"""Help is quick, complete and readable anywhere."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lora_detr.cli import app
from tests.cli.conftest import Ended, run_process

SETTINGS = ("config list", "config show", "config validate", "config diff")
TABLES = ("ablate list", "ablate run", "ablate report")
TOP = ("train", "eval", "report", "strip", "export", "predict", "convert", "demo", "doctor", "analyze-loss")
GROUPS = ("config", "ablate", "data")
COMMANDS = (*TOP, *TABLES, *SETTINGS, "data convert")

# Two small screens, for the command that has most options; all else (usage, examples, frames) takes one at most.
MOST_LINES = 75
LINES_WITHOUT_OPTIONS = 24

COMMON = [
    *("--baseline", "--preset", "--aux", "--data", "--epochs", "--batch-size", "--lr", "--weights"),
    *("--output-dir", "--resume"),
]

SHORT = {"--output": "-o", "--output-dir": "-o", "--resume": "-r"}

# Options that do nothing when they are left out, or that the text around them explains.
NO_DEFAULT = {
    "eval": {"--nms", "--predictions", "--confusion"},
    "strip": {"--branch"},
    "predict": {"--nms", "--annotations"},
    "config show": {"--config", "--set"},
    "ablate run": {"--set"},
}

# Promised are 0.5 s. A machine that runs something else may take longer by the clock, but hardly by CPU time.
WALL_SECONDS = 1.5
CPU_SECONDS = 0.8


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Help of the root and of each command, away from a terminal, 80 columns wide."""
    folder = tmp_path_factory.mktemp("help")
    lines = {name: (*name.split(), "--help") for name in ("", *GROUPS, *COMMANDS)}
    return {name: run_process(*line, folder=folder, COLUMNS="80", NO_COLOR="1") for name, line in lines.items()}


def command_of(name: str) -> Any:
    """Return the command of one or two words."""
    command: Any = get_command(app)
    for word in name.split():
        command = command.commands[word]
    return command


@pytest.mark.parametrize("name", ["", *GROUPS, *COMMANDS])
def test_help_is_plain_text_of_the_given_width(name: str, helps: dict[str, Ended]) -> None:
    ended = helps[name]
    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    assert f"Usage: python -m lora_detr {name}".rstrip() in ended.out
    # Text in square brackets that was taken for markup leaves nothing, an empty pair or a doubled blank behind.
    assert "[]" not in ended.out
    assert not re.search(r"\(\s*\)|\bNone\b", ended.out)


@pytest.mark.parametrize("name", ["", *GROUPS, *COMMANDS])
def test_a_flag_shows_no_type(name: str, helps: dict[str, Ended]) -> None:
    assert "bool" not in helps[name].out.lower()


@pytest.mark.parametrize("name", ["", *GROUPS, *COMMANDS])
def test_a_short_form_means_the_same_in_every_command(name: str, helps: dict[str, Ended]) -> None:
    assert re.search(r"│ --help +-h +Show", helps[name].out)
    for option in (parameter for parameter in command_of(name).params if parameter.param_type_name == "option"):
        assert option.opts[1:] == [SHORT[form] for form in option.opts if form in SHORT]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_listed_with_its_help(name: str, helps: dict[str, Ended]) -> None:
    command = command_of(name)
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", helps[name].out).split())
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"{name}: {parameter.name} has no help"
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in shown
        first = text.split()[:2]  # the rest may be wrapped around another column
        assert " ".join(first) in shown, f"{name}: {text!r}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_its_own_parser_accepts(name: str, helps: dict[str, Ended]) -> None:
    example = re.search(rf"Example: loradetr {name}\b(.*)", helps[name].out)
    assert example, name
    command = command_of(name)
    assert command.make_context(name, example[1].split()).params or not command.params


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen_or_grows_with_its_options(name: str, helps: dict[str, Ended]) -> None:
    count = sum(parameter.param_type_name == "option" for parameter in command_of(name).params)
    assert len(helps[name].out.splitlines()) <= min(MOST_LINES, LINES_WITHOUT_OPTIONS + count)


def test_what_most_trainings_need_stands_first(helps: dict[str, Ended]) -> None:
    shown = re.findall(r"^│ (--[a-z-]+)", helps["train"].out, re.MULTILINE)
    assert shown[: len(COMMON) + 1] == [*COMMON, "--help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_an_option_is_when_it_is_left_out_is_said(name: str, helps: dict[str, Ended]) -> None:
    text = helps[name].out
    if name == "train":
        assert "Options you omit keep the preset's value" in text
        return
    rows = [" ".join(re.sub(r"[│╭╮╰╯─]", " ", row).split()) for row in text.split("\n│ --")]
    for option in (parameter for parameter in command_of(name).params if parameter.param_type_name == "option"):
        (row,) = [row for row in rows if f"--{row}".startswith(f"{option.opts[0]} ")]
        if option.is_flag or option.opts[0] in NO_DEFAULT.get(name, ()):
            assert not option.default, option.name
        elif option.default is None:
            assert re.search(r"\([^)]+\)", row), f"{name} {option.opts[0]} does not say what it is when left out"
        else:
            assert f"[default: {option.default}]" in row


def test_commands_and_what_they_do_are_listed(helps: dict[str, Ended]) -> None:
    for name in COMMANDS:
        group, _, command = name.rpartition(" ")
        assert re.search(rf"│ {command} +\S", helps[group].out)
    top = {name.split()[0] for name in COMMANDS}
    assert set(re.findall(r"^│ ([a-z][a-z-]*) +[A-Z]", helps[""].out, re.MULTILINE)) == top


def test_without_arguments_help_is_shown(tmp_path: Path) -> None:
    ended = run_process(folder=tmp_path)
    assert ended.code == 2  # a script that forgets the command must notice
    assert "Usage:" in ended.out + ended.err


def test_help_is_quick(tmp_path: Path) -> None:
    # The best of three: a single start may wait for the disk.
    wall, cpu = [], []
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        assert run_process("--help", folder=tmp_path).code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime - before.ru_utime)
    assert min(wall) < WALL_SECONDS
    assert min(cpu) < CPU_SECONDS


def test_the_command_line_imports_no_torch() -> None:
    code = "import sys, lora_detr.cli; sys.exit(len({'torch', 'timm', 'numpy', 'pydantic'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_version(tmp_path: Path) -> None:
    ended = run_process("--version", folder=tmp_path)
    assert ended.code == 0
    assert re.fullmatch(r"loradetr \d+\.\d+\.\d+\S*\n", ended.out)
