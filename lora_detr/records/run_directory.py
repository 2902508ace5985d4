"""The folder of a run: what is written when, so that nothing is lost and every result can be repeated."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import platform
import shlex
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_detr.atomic_files import prepare_directory, reporting, set_aside, write_file
from lora_detr.checkpoints.checkpoint import CHECKPOINTS
from lora_detr.config.dump import diff_configs, dump_config
from lora_detr.config.source import RUN_SETTINGS
from lora_detr.data.coco.report import AnnotationError
from lora_detr.errors import ConfigError, OutputError
from lora_detr.json_value import json_text
from lora_detr.recipe.run_config import RunConfig

LOCK, DATA_REPORT, COMMANDS = ".lock", "data_report.json", "command.txt"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run directory, and writers for what is written once."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "log.txt"

    @property
    def diagnostics(self) -> Path:
        """One JSON line a step whose branches were looked at."""
        return self.path / "diagnostics.jsonl"

    @property
    def logs(self) -> tuple[Path, ...]:
        """All files of JSON lines with a step."""
        return self.metrics, self.log, self.diagnostics

    @property
    def results(self) -> Path:
        """One CSV row an evaluation."""
        return self.path / "results.csv"

    @property
    def changes(self) -> Path:
        """One JSON line a resume that changed something."""
        return self.path / "changes.jsonl"

    @property
    def exit(self) -> Path:
        """How the run ended; not there while it trains."""
        return self.path / "exit.json"

    @property
    def evaluation(self) -> Path:
        """Folder of the last evaluation."""
        return self.path / "eval"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def written(self) -> tuple[Path, ...]:
        """All files that a run which is resumed may write, besides its checkpoints."""
        names = (COMMANDS, RUN_SETTINGS, DATA_REPORT, "results.png")
        results = (self.evaluation / name for name in ("metrics.json", "per_class.csv", "predictions.json"))
        return *self.logs, self.results, self.changes, self.exit, *(self.path / name for name in names), *results

    def create(self, resume: bool) -> None:
        """Make the folder; one that is in use is refused unless the run is resumed.

        A file where a folder of a resumed run should be is moved aside.

        Raises:
            ConfigError: C06, the folder is not empty; nothing was touched.
            OutputError: the folder cannot be made or written.
        """
        self.check_free(resume)
        for folder in (self.evaluation, self.tensorboard) if resume else ():
            if os.path.lexists(folder) and not folder.is_dir():
                logger.warning("%s: expected a folder, found a file; it is kept as %s", folder, set_aside(folder).name)
        for folder in (self.path, self.checkpoints, self.evaluation):
            prepare_directory(folder)

    def check_free(self, resume: bool = False) -> None:
        """Refuse a folder that is in use, or a file, without touching anything; errors as of ``create``."""
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: expected a folder, found a file", "choose another --output-dir")
        if not resume and self.path.is_dir() and not _is_free(self.path):
            raise ConfigError(
                f"{self.path}: the run directory is not empty; nothing was touched",
                f"continue it with --resume {self.path}, or choose another --output-dir",
                code="C06",
            )

    def prepare_for(self, checkpoint_bytes: int) -> None:
        """Prove that a checkpoint can be written, before hours of work depend on it.

        Raises:
            OutputError: P13, there is no room for one.
        """
        prepare_directory(self.checkpoints, checkpoint_bytes)

    def add_command(self) -> None:
        """Append the command of this process to ``command.txt``: one line for the start, one for each resume.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path / COMMANDS
        before = path.read_bytes() if path.exists() else b""
        write_file(path, before + f"{command_line()}\n".encode(errors="backslashreplace"))

    def update_config(self, config: RunConfig, stored: RunConfig) -> str:
        """Write into ``config.yaml`` what a resumed run does differently, and leave the origins of all else.

        The file is no source: what a user or a fault has changed in it is overwritten.

        Args:
            config: the run goes on with it.
            stored: the run had it until now.

        Returns:
            A line about what the file held instead of the settings of the run, empty where it held those.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path / RUN_SETTINGS
        origin = {key: "resume" for key, _, _ in diff_configs(stored, config)}
        lines = dump_config(config, origin).splitlines()
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if len(old) == len(lines):
            # A line that says the same is the old one without its origin.
            pairs = zip(old, lines, strict=True)
            lines = [was if was.startswith(f"{now}  # ") else now for was, now in pairs]
        self.write_text(path.name, "\n".join(lines) + "\n")
        wrong = _first_other(old, dump_config(stored).splitlines())
        return f"{path}: {wrong}; the settings in the checkpoint count, and are written again" if old and wrong else ""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, so that no second process trains into it; freed when this process ends, however it ends.

        Raises:
            ConfigError: C09, another process holds it; names its process id and host.
            OutputError: the lock cannot be written.
        """
        with reporting(self.path / LOCK):
            # A link is not followed: what it leads to would be emptied.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
            opened = os.open(self.path / LOCK, flags, 0o666)
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                os.close(opened)
                raise OSError(errno.EINVAL, "expected a regular file")
        with open(opened, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise ConfigError(
                    f"{self.path}: another process trains here ({file.read().strip()})",
                    "wait for it to end, or choose another --output-dir",
                    code="C09",
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    def discard(self) -> None:
        """Remove the folder again if only empty folders and the lock are in it; why data was refused stays there."""
        own = {LOCK, self.checkpoints.name, self.evaluation.name, DATA_REPORT}
        if {entry.name for entry in self.path.iterdir()} <= own:
            (self.path / LOCK).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.evaluation, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run atomically.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(self.path / name, text.encode())

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file of the run atomically."""
        self.write_text(name, json_text(value, indent=1) + "\n")

    def write_exit(
        self, code: int, kind: str, rank: int, step: int, message: str, last_checkpoint: str | None, lost: str = ""
    ) -> None:
        """Write ``exit.json``: how the run ended, for scripts; ``display`` is in it where the output was lost."""
        self.write_json(
            self.exit.name,
            {
                "code": code,
                "class": kind,
                "rank": rank,
                "step": step,
                "message": message,
                "last_checkpoint": last_checkpoint,
                **({"display": f"lost: {lost}"} if lost else {}),
            },
        )


def _first_other(lines: Sequence[str], expected: Sequence[str]) -> str:
    """Return what the first line is, comments apart, that is not the expected one; an empty text if all are."""
    for number, (line, wanted) in enumerate(itertools.zip_longest(lines, expected), start=1):
        if line is None:
            return f"ends before line {number}, where the run has '{wanted.strip()}'"
        if wanted is None or (line != wanted and not line.startswith(f"{wanted}  # ")):
            ours = "the run has nothing more" if wanted is None else f"the run has '{wanted.strip()}'"
            return f"line {number} is '{line.strip()}', {ours}"
    return ""


def next_run(parent: Path, name: str) -> Path:
    """Return ``parent/name-<n>`` with the smallest n from 1 that does not exist, or holds no run."""
    n = 1
    while (path := parent / f"{name}-{n}").exists() and not (path.is_dir() and _holds_only_a_refusal(path)):
        n += 1
    return path


def _is_free(path: Path) -> bool:
    return not any(path.iterdir()) or _holds_only_a_refusal(path)


def _holds_only_a_refusal(path: Path) -> bool:
    """Return whether a folder holds nothing but the problems of data that a run has refused."""
    return [entry.name for entry in path.iterdir()] == [DATA_REPORT]


def command_line() -> str:
    """Return the command as it could be typed again."""
    return shlex.join(["loradetr", *sys.argv[1:]])


@contextlib.contextmanager
def problems_kept(directory: Path, wanted: bool) -> Iterator[None]:
    """Write all problems of data that is refused within to ``data_report.json``, and say so in the message.

    Args:
        directory: of the run that was to start.
        wanted: whether this process writes; else nothing changes.

    Raises:
        AnnotationError: the data is refused, whether or not the file could be written.
    """
    try:
        yield
    except AnnotationError as error:
        if not wanted:
            raise
        path = directory / DATA_REPORT
        text = json_text({"problems": error.to_json()}, indent=1) + "\n"
        try:
            write_file(path, text.encode())
        except OutputError:
            raise error from None
        raise error.listed_in(path) from None
