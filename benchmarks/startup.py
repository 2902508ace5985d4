"""Measure how long the command line takes to answer what needs no work: help, and the list of presets.

    python benchmarks/startup.py
    python benchmarks/startup.py --only train --rounds 20

Each command runs in a new process, all of them in turn, after a round that does not count: so files come from the
memory of the system. ``ratio`` is to Python that does nothing. ``modules`` are imported when the process ends, and
``torch`` says whether PyTorch is among them, which it must not be: that alone takes longer than the half second that is
promised.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from typer.main import get_command

from benchmarks.report import Row, give, parse
from lora_detr.cli import app
from lora_detr.experiments.cost.interleaved import interleaved

NOTHING = "pass"

# As the installed script calls it.
COMMAND = "import sys; sys.argv = {arguments!r}; from lora_detr.cli import main; sys.exit(main())"

COUNTED = """
import atexit, os, sys
atexit.register(lambda: os.write(2, f"{{len(sys.modules)}} {{'torch' in sys.modules}}".encode()))
{code}
"""


@dataclass(frozen=True)
class Imported:
    """What a process has imported when it ends.

    Attributes:
        modules: number of modules, those that Python starts with among them.
        torch: whether PyTorch is one.
    """

    modules: int
    torch: bool


def commands() -> list[tuple[str, ...]]:
    """Return the arguments of every command line that is measured: help of all, and the list of presets."""
    return [("--help",), *(line for line in _helps(get_command(app), ())), ("config", "list")]


def code_of(arguments: Sequence[str]) -> str:
    """Return the program that stands for a command line."""
    return COMMAND.format(arguments=["loradetr", *arguments])


def run(code: str) -> str:
    """Run a program in a new process and return what it said on stderr.

    Raises:
        SystemExit: it failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{code}\n{done.stderr}")
    return done.stderr


def imported(code: str) -> Imported:
    """Run a program that says nothing on stderr and return what it has imported."""
    modules, has_torch = run(COUNTED.format(code=code)).split()
    return Imported(int(modules), has_torch == "True")


def measure(lines: Sequence[Sequence[str]], rounds: int) -> list[Row]:
    """Return a row for Python that does nothing, and one for each command line."""
    names = ["python -c pass", *(" ".join(("loradetr", *line)) for line in lines)]
    programs = [NOTHING, *map(code_of, lines)]
    timings = interleaved([partial(run, program) for program in programs], rounds)
    rows: list[Row] = []
    for name, program, timing in zip(names, programs, timings, strict=True):
        found = imported(program)
        ratios = {"ratio": timing.ratio, "lowest": timing.lowest, "highest": timing.highest}
        rows.append(
            {"command": name, "seconds": timing.seconds, **ratios, "modules": found.modules, "torch": found.torch}
        )
    return rows


def _helps(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield (*words, name, "--help")
        yield from _helps(inner, (*words, name))


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORD", help="command lines with this word, such as train")
    parser.add_argument("--rounds", type=int, default=5)
    given = parse(parser)
    lines = [line for line in commands() if given.only is None or given.only in line]
    if not lines:
        parser.error(f"--only {given.only}: no command line has this word")
    give(measure(lines, given.rounds), given)


if __name__ == "__main__":
    main()
