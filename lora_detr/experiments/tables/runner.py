"""Run the trainings of a study, several at a time, each in a process of its own.

A training that fails is reported and the others go on. A request to end is passed on: trainings save and go, and the
same command goes on with them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

from lora_detr.atomic_files import write_file
from lora_detr.errors import ConfigError, OutputError, Stopped, WorkerError
from lora_detr.experiments.tables.study import Run, Study
from lora_detr.processes.process import REQUESTS_TO_END, handled_by
from lora_detr.records.log_reading import read_object
from lora_detr.records.run_directory import RunDirectory

TAIL = 3
"""Last lines of a failed training that are shown: the message, its remedy, and one before them."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: which.
        code: exit code of the command that ended it; 0 if all is done.
        tail: its last lines, where it failed.
    """

    run: Run
    code: int
    tail: tuple[str, ...] = ()


def slots(jobs: int | None, gpus: int, visible: int, cores: int) -> list[Mapping[str, str]]:
    """Return the environment of each place that a training can take.

    Args:
        jobs: places; by default as many as the GPUs suffice for, or one on a CPU.
        gpus: of each training.
        visible: GPUs of this machine; 0 trains on the CPU.
        cores: of this machine, shared evenly between trainings on the CPU.

    Raises:
        ConfigError: there are fewer GPUs than asked for.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: expected 1 or more", "leave it out for the default")
    if not visible:
        count = jobs or 1
        return [{"OMP_NUM_THREADS": str(max(1, cores // count))}] * count
    count = jobs or max(1, visible // gpus)
    if count * gpus > visible:
        raise ConfigError(
            f"{count} trainings on {gpus} GPUs each: PyTorch sees {visible}", "lower --jobs or --gpus, or --device cpu"
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(index) for index in range(visible)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[i * gpus : (i + 1) * gpus])} for i in range(count)]


class Runner:
    """Runs the trainings of a study.

    Args:
        study: what is run.
        places: environment of each place (see ``slots``).
        extra: further arguments of every ``loradetr train`` that change no result, such as ``--workers``.
        say: shows a line.
        program: what is started; by default this package.
    """

    def __init__(
        self,
        study: Study,
        places: Sequence[Mapping[str, str]],
        extra: Sequence[str],
        say: Callable[[str], None],
        program: Sequence[str] = (sys.executable, "-m", "lora_detr"),
    ) -> None:
        self.study, self.extra, self.say, self.program = study, list(extra), say, list(program)
        self.count = len(places)
        self.free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        for place in places:
            self.free.put(place)
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.stop_requested: signal.Signals | None = None

    def run(self) -> list[Outcome]:
        """Run everything that is not done yet.

        Returns:
            How each run ended, those that were done before included.

        Raises:
            Stopped: a signal asked for it; the trainings have saved.
        """
        outcomes: list[Outcome] = []
        total = len(self.study.runs)
        with handled_by(self._pass_on, REQUESTS_TO_END), ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(self._one, run) for run in self.study.runs]
            for future in as_completed(futures):
                outcome = future.result()
                outcomes.append(outcome)
                if self.stop_requested is None:
                    self.say(f"[{len(outcomes)}/{total}] {_line(outcome, self.study)}")
        if self.stop_requested is not None:
            raise Stopped(
                f"stopped on {self.stop_requested.name}; the same command resumes", self.stop_requested == signal.SIGINT
            )
        return outcomes

    def _one(self, run: Run) -> Outcome:
        if self.stop_requested is not None:
            return Outcome(run, Stopped.exit_code)
        place = self.free.get()
        try:
            log = self.study.log(run)
            log.parent.mkdir(parents=True, exist_ok=True)
            if not is_done(run):
                code = self._command([*self.study.train_command(run), *self.extra], place, log, log)
                if code:
                    return Outcome(run, code, _tail(log))
            for question in self.study.questions(run):
                if question.file.is_file():
                    continue
                question.file.parent.mkdir(parents=True, exist_ok=True)
                unfinished = question.file.with_suffix(".part")
                code = self._command(question.arguments, place, unfinished, log)
                if code:
                    return Outcome(run, code, _tail(log))
                write_file(question.file, unfinished.read_bytes())
                unfinished.unlink()
            return Outcome(run, 0)
        finally:
            self.free.put(place)

    def _command(self, arguments: Sequence[str], place: Mapping[str, str], out: Path, log: Path) -> int:
        """Run ``loradetr`` and return its exit code; errors go to the log."""
        with log.open("ab") as errors, contextlib.ExitStack() as stack:
            errors.write(f"$ {shlex.join(['loradetr', *arguments])}\n".encode())
            errors.flush()
            output = errors if out == log else stack.enter_context(out.open("wb"))
            with self.lock:
                if self.stop_requested is not None:
                    return Stopped.exit_code
                process = subprocess.Popen(
                    [*self.program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    env={**os.environ, **place},
                    start_new_session=True,  # so that Ctrl-C reaches it once, through us
                )
                self.running.add(process)
            self._end_if_asked(process)
            try:
                return process.wait()
            finally:
                with self.lock:
                    self.running.discard(process)

    def _end_if_asked(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a process to end that was started just when all were asked."""
        if self.stop_requested is not None:
            process.send_signal(signal.SIGTERM)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = signal.Signals(number)
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)


def is_done(run: Run) -> bool:
    """Return whether a run has finished: the folder says so, and holds the results. What cannot be read does not."""
    directory = RunDirectory(run.folder)
    with contextlib.suppress(OutputError):
        return directory.results.is_file() and read_object(directory.exit).get("code") == 0
    return False


def refuse_failures(outcomes: Sequence[Outcome], study: Study) -> None:
    """Say which runs failed, after all others are done.

    Raises:
        WorkerError: at least one did.
    """
    failed = [outcome for outcome in outcomes if outcome.code]
    if failed:
        names = ", ".join(outcome.run.name for outcome in failed)
        raise WorkerError(
            f"{len(failed)} of {len(outcomes)} runs failed: {names}",
            f"their output is in {study.folder / 'logs'}; the same command runs them again",
        )


def _line(outcome: Outcome, study: Study) -> str:
    if not outcome.code:
        return f"{outcome.run.name}: done"
    lines = "".join(f"\n    {line}" for line in outcome.tail)
    return f"{outcome.run.name}: failed with exit code {outcome.code} ({study.log(outcome.run)}){lines}"


def _tail(log: Path) -> tuple[str, ...]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line for line in lines[-TAIL:] if line.strip())
