"""What is printed suits who reads it: a person at a terminal, a log file, or another program."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.cli.conftest import Command, Ended
from tests.small_runs import SMALL

COLUMNS = 80
ESCAPE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
# Foreground and background, of the 8 and 16 colours, of the palette and of all.
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:[34][0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
FAULT = """
import sys
from lora_detr.cli.console import run_guarded
from lora_detr.errors import ConfigError
def fail():
    raise ConfigError("expected [a], found [b]", "give [a]")
sys.exit(run_guarded(fail))
"""
TRAIN = ("-m", "lora_detr", "train", "--preset", SMALL, "--max-steps", 2, "--output-dir", "run", "--data")


def at_a_terminal(*arguments: object, folder: Path, **environment: str) -> Ended:
    """Run Python in a process whose only way out is a terminal of 80 columns; all it shows is ``out``."""
    hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI")
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    source = str(Path(__file__).parents[2])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, "TERM": "xterm", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while part := _read(ours):
        shown += part
    os.close(ours)
    return Ended(process.wait(timeout=60), shown.decode(), "")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that the other side is closed
        return b""


def lines_of(text: str) -> list[str]:
    """Return what stood on the lines of the terminal, each state of a line that was drawn again."""
    return re.split(r"[\r\n]+", ESCAPE.sub("", text))


@pytest.fixture(
    scope="module", params=[{}, pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.slow)], ids=["colours", "no colours"]
)
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """What a user says about colours."""
    wanted: dict[str, str] = request.param
    return wanted


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A training at a terminal."""
    return at_a_terminal(*TRAIN, shapes_tiny, folder=tmp_path_factory.mktemp("terminal"), **environment)


class TestTerminal:
    """There is a bar that moves, and colours unless they are not wanted."""

    def test_training_shows_a_bar_with_loss_and_ap(self, trained: Ended) -> None:
        assert trained.code == 0, trained.out
        bars = [line for line in lines_of(trained.out) if "━" in line]
        assert max(map(len, bars)) <= COLUMNS
        assert re.match(r"epoch 1 ━+ 2/2 loss \d+\.\d\d  AP -?\d\.\d{3} ", bars[-1])
        # Before the first step there is no loss, which is not the same as one that is not a number.
        assert [line for line in lines_of(trained.out) if re.search(r" 0/2 +loss -  AP - ", line)]
        assert not re.search(r"\bnan\b", trained.out)

    def test_lines_stay_above_the_bar_and_the_cursor_comes_back(self, trained: Ended) -> None:
        lines = lines_of(trained.out)
        assert sum(line.startswith("epoch 1/2  step 2  loss ") for line in lines) == 1
        assert [line for line in lines if line.strip()][-1] == "next: loradetr eval run; loradetr strip run"
        assert trained.out.rindex("\x1b[?25h") > trained.out.rindex("\x1b[?25l")

    def test_a_training_has_colours_unless_they_are_not_wanted(
        self, trained: Ended, environment: dict[str, str]
    ) -> None:
        assert bool(COLOUR.search(trained.out)) == (not environment)

    def test_errors_are_red_unless_colours_are_not_wanted(self, environment: dict[str, str], tmp_path: Path) -> None:
        ended = at_a_terminal("-c", FAULT, folder=tmp_path, **environment)
        assert ended.code == 2
        assert lines_of(ended.out) == ["error: expected [a], found [b]", "  give [a]", ""]
        assert ended.out.startswith("\x1b[31merror") == (not environment)
        assert bool(COLOUR.search(ended.out)) == (not environment)

    def test_json_is_plain_at_a_terminal_too(self, tmp_path: Path) -> None:
        ended = at_a_terminal("-m", "lora_detr", "config", "list", "--json", folder=tmp_path)
        assert "\x1b" not in ended.out
        assert json.loads(ended.out)


class TestNoTerminal:
    """A log holds text and nothing else, and each line once."""

    @pytest.fixture
    def plain(self, loradetr: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
        """A command that might use colours: nothing but the missing terminal keeps it from that."""
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "xterm-256color")
        return loradetr

    def test_a_training(self, plain: Command, shapes_tiny: Path) -> None:
        ended = plain(*TRAIN[2:], shapes_tiny)
        assert (ended.code, ended.err) == (0, "")
        assert not re.search(r"[\x1b\r━]", ended.out)
        assert ended.out.count("\nepoch 1/2  step 2  loss ") == 1

    def test_predictions(self, plain: Command, small_run: Path, shapes_tiny: Path) -> None:
        ended = plain("predict", small_run, shapes_tiny / "val")
        assert (ended.code, ended.err) == (0, "")
        assert not re.search(r"[\x1b\r━]", ended.out)
        assert len(ended.out.splitlines()) == 8  # what is kept, six images, and where they are

    @pytest.mark.parametrize("line", [("config", "show", "deformabel"), ("config", "shows"), ("train", "--bogus")])
    def test_an_error(self, line: tuple[str, ...], plain: Command) -> None:
        ended = plain(*line)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err
        assert "\x1b" not in ended.err


@pytest.mark.parametrize(
    "line",
    [
        "eval {run} --workers 0 --json",
        "strip {run} --inputs 1 --json",
        "predict {run} {images} --json",
        "config list --json",
        "config show deformable --json",
        "config diff deformable deformable-lora1 --json",
    ],
)
def test_json_is_one_document_and_nothing_else(line: str, loradetr: Command, own_run: Path, shapes_tiny: Path) -> None:
    ended = loradetr(*(word.format(run=own_run, images=shapes_tiny / "val") for word in line.split()))
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)
    assert ended.out.endswith(("}\n", "]\n"))
