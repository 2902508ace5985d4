"""Run the trials of a part, keep a line for each in a log, and sum a log up.

A trial is a pure function of its number, so that a failure can be repeated, and a log can be continued at any time:
what is in it is not run again.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch

from lora_detr.json_value import JSON

REPOSITORY = Path(__file__).parents[2]

_scratch: list[Path] = []


@dataclass(frozen=True)
class Part:
    """One promise and how it is tried.

    Attributes:
        name: of the part, as the command line takes it.
        trials: the full count.
        short: how many of them the default test run takes, from trial 0.
        run: does one trial, with its number as the seed, in an empty folder; returns facts (numbers and short text);
            raises AssertionError with a message where the promise is broken.
        description: one line.
    """

    name: str
    trials: int
    short: int
    run: Callable[[int, Path], Mapping[str, JSON]]
    description: str


@dataclass(frozen=True)
class Result:
    """How a trial ended: a line of the log.

    Attributes:
        part: name of the part.
        trial: its number.
        ok: whether the promise held.
        seconds: it took.
        facts: what the trial reported; empty where it failed.
        error: the end of the traceback where it failed, else empty.
        commit: of the code, with ``-dirty`` where files differ from it.
        date: of its end, UTC.
    """

    part: str
    trial: int
    ok: bool
    seconds: float
    facts: Mapping[str, JSON] = field(default_factory=dict)
    error: str = ""
    commit: str = ""
    date: str = ""


def use_scratch(folder: Path) -> None:
    """Name the folder where trials and what they share are written; who calls this removes it at the end."""
    _scratch[:] = [folder]


def shared_folder(name: str) -> Path:
    """Return a new folder of this process for what all trials of it share, such as a data set."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_scratch[0]))


def run_trial(part: Part, trial: int) -> Result:
    """Run one trial in an empty folder, which is removed again, and return how it ended.

    It computes on one thread: parts fork, and a fork has none of the threads that its parent computed with.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    began = time.monotonic()
    facts: Mapping[str, JSON] = {}
    error = ""
    with tempfile.TemporaryDirectory(prefix=f"{part.name}-{trial}-", dir=_scratch[0]) as folder:
        try:
            facts = part.run(trial, Path(folder))
        except (
            Exception,
            pytest.fail.Exception,
        ) as caught:  # whatever escapes a trial is a broken promise, and the other trials go on
            error = "".join(traceback.format_exception(caught))[-4000:]
    torch.set_num_threads(threads)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Result(part.name, trial, not error, round(time.monotonic() - began, 3), facts, error, _commit(), date)


def run_trials(part: Part, trials: Sequence[int], jobs: int) -> Iterator[Result]:
    """Yield the results of some trials as they end, from ``jobs`` processes; from this one where that is 1."""
    if jobs == 1:
        for trial in trials:
            yield run_trial(part, trial)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, use_scratch, (_scratch[0],)) as pool:
        for future in as_completed([pool.submit(run_trial, part, trial) for trial in trials]):
            yield future.result()


def read_log(path: Path) -> dict[int, Result]:
    """Return trial -> its last result; an unfinished last line and a missing file hold none."""
    if not path.is_file():
        return {}
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    results = (Result(**json.loads(line)) for line in whole.splitlines())
    return {result.trial: result for result in results}


def append_result(path: Path, result: Result) -> None:
    """Append a line to a log, which is made if need be; a part of a line that a killed process left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(file.seek(content.rfind(b"\n") + 1))
        file.write(json.dumps(asdict(result)).encode() + b"\n")


def summary(name: str, results: Iterable[Result]) -> str:
    """Return one line on a part: trials, failures, seconds and facts; ``min/median/max`` for numbers."""
    ended = list(results)
    failures = sum(not result.ok for result in ended)
    pieces = [f"{name}: {len(ended)} trials, {failures} failures"]
    if ended:
        pieces.append(f"seconds {spread([result.seconds for result in ended])}")
    return "; ".join([*pieces, *describe_facts(ended)])


def describe_facts(results: Iterable[Result]) -> list[str]:
    """Return ``key min/median/max`` for each fact that is a number, and ``key: value n, ...`` for the others."""
    values: dict[str, list[JSON]] = {}
    for result in results:
        for key, value in result.facts.items():
            values.setdefault(key, []).append(value)
    described = []
    for key, found in values.items():
        numbers = [value for value in found if isinstance(value, int | float)]
        if len(numbers) == len(found):
            described.append(f"{key} {spread(numbers)}")
        else:
            counts = Counter(map(str, found)).most_common(12)
            described.append(f"{key}: " + ", ".join(f"{value} {count}" for value, count in counts))
    return described


def spread(numbers: Sequence[float]) -> str:
    """Return ``min/median/max`` of at least one number."""
    return "/".join(f"{value:.6g}" for value in (min(numbers), statistics.median(numbers), max(numbers)))


@cache
def _commit() -> str:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
