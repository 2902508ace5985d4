"""One study: a table run at one scale on one data set, and its folder.

The folder holds ``study.json`` (what was asked for), a run directory for each row and seed, what each training said in
``logs``, and the answers of branches in ``answers``. Everything else is read off these, so a study that was killed
goes on by the same command.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_detr.atomic_files import write_file
from lora_detr.data.synthetic.sets import display_name
from lora_detr.errors import ConfigError, OutputError, nearest
from lora_detr.experiments.tables.table import SCALES, Answer, Scale, TableInfo, TableRow, find_table
from lora_detr.json_value import JSON, read_json
from lora_detr.recipe.run_config import RunConfig
from lora_detr.runs.request import resolve

RECORD = "study.json"
NEVER = 1_000_000
"""Epochs that no run reaches, where the number of steps is given."""


@dataclass(frozen=True)
class Settings:
    """What all runs of a study have in common.

    Attributes:
        scale: whether presets are those of the paper or the small ones.
        data: COCO folder or YAML file, absolute.
        steps: of every run, in place of the presets' epochs.
        evaluate_every: epochs between evaluations, in place of the presets' number.
        overrides: further ``--set`` texts.
    """

    scale: Scale
    data: Path
    steps: int | None = None
    evaluate_every: int | None = None
    overrides: tuple[str, ...] = ()

    def arguments(self, shown: bool = False) -> list[str]:
        """Return what they add to ``loradetr train``; ``shown`` to a reader, who has the data elsewhere."""
        given = ["--data", display_name(self.data) if shown else str(self.data)]
        if self.steps is not None:
            given += ["--max-steps", str(self.steps), "--epochs", str(NEVER)]
        if self.evaluate_every is not None:
            given += ["--set", f"evaluation.every={self.evaluate_every}"]
        return given + [text for override in self.overrides for text in ("--set", override)]

    def scaled_down(self) -> list[str]:
        """Return in what runs differ from what the paper's figures were measured with, as far as settings say."""
        found = [] if self.scale == "paper" else ["small presets (--scale tiny)"]
        found += [] if self.steps is None else [f"{self.steps} steps instead of the presets' epochs"]
        return found + [f"--set {override}" for override in self.overrides]


@dataclass(frozen=True)
class Run:
    """A row and a seed.

    Attributes:
        row: of the table.
        seed: of everything random.
        folder: run directory.
    """

    row: TableRow
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Row and seed, as files and lines have it."""
        return f"{self.row.name}-seed{self.seed}"


@dataclass(frozen=True)
class Question:
    """An evaluation of a run besides that of its primary path.

    Attributes:
        answer: who answers, and how.
        file: that the answer goes to.
        arguments: of ``loradetr``.
    """

    answer: Answer
    file: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A table, its settings, and where it is run.

    Attributes:
        info: the table.
        settings: of all runs.
        rows: that are run.
        seeds: that each row is run with.
        folder: holds everything.
    """

    info: TableInfo
    settings: Settings
    rows: tuple[TableRow, ...]
    seeds: tuple[int, ...]
    folder: Path

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a study that is stopped has whole seeds."""
        return [Run(row, seed, self.folder / row.name / f"seed{seed}") for seed in self.seeds for row in self.rows]

    def compared_with(self, row: str) -> Study:
        """Return the same study whose rows are compared with another one.

        Raises:
            ConfigError: it has no such row.
        """
        names = [own.name for own in self.rows]
        if row not in names:
            raise ConfigError(f"--against {row}: no such row{nearest(row, names)}", f"known: {', '.join(names)}")
        table = self.info.table.model_copy(update={"reference": row})
        return replace(self, info=replace(self.info, table=table))

    def train_command(self, run: Run) -> list[str]:
        """Return the arguments of ``loradetr`` that train a run, or go on with it."""
        chosen = run.row.at(self.settings.scale).arguments()
        own = ["--seed", str(run.seed), "--output-dir", str(run.folder), "--auto-resume"]
        return ["train", *chosen, *self.settings.arguments(), *own]

    def config(self, row: TableRow) -> RunConfig:
        """Return the configuration of a row's runs; their steps, evaluations and seed aside.

        Raises:
            ConfigError: its options are wrong.
        """
        request = row.at(self.settings.scale).request(self.settings.data, self.settings.overrides)
        return resolve(request).loaded.config

    def questions(self, run: Run) -> list[Question]:
        """Return what is evaluated besides the primary path; nothing of branches that the row does not have."""
        answers = self.info.table.answers
        if len(answers) == 1:
            return []
        branches = len(self.config(run.row).branches)
        return [
            Question(
                answer,
                self.folder / "answers" / f"{run.name}-{index}.json",
                tuple(_evaluation(run.folder, answer)),
            )
            for index, answer in enumerate(answers)
            if index and (answer.branch is None or answer.branch < branches)
        ]

    def log(self, run: Run) -> Path:
        """Return the file that holds what a training says."""
        return self.folder / "logs" / f"{run.name}.txt"

    def command(self) -> str:
        """Return the command that makes this study, as it is typed, without its folder."""
        settings = self.settings
        given = [
            "loradetr",
            "ablate",
            "run",
            self.info.reference,
            "--scale",
            settings.scale,
            "--data",
            display_name(settings.data),
        ]
        given += ["--seeds", ",".join(map(str, self.seeds))]
        given += [] if settings.steps is None else ["--max-steps", str(settings.steps)]
        given += [] if settings.evaluate_every is None else ["--eval-every", str(settings.evaluate_every)]
        given += [text for override in settings.overrides for text in ("--set", override)]
        chosen = [row.name for row in self.rows]
        every = [row.name for row in self.info.table.at(settings.scale)]
        return shlex.join(given + ([] if chosen == every else ["--rows", ",".join(chosen)]))

    def record(self) -> None:
        """Write what was asked for, or compare it with what the folder holds already.

        Rows and seeds may be added; whatever else differs would make other runs of the same names.

        Raises:
            ConfigError: the folder belongs to another study.
            OutputError: it cannot be written.
        """
        path = self.folder / RECORD
        before = _read(path) if path.exists() else None
        now = _describe(self)
        if before is not None:
            now["rows"] = {**_mapping(before.get("rows")), **_mapping(now["rows"])}
            earlier = [seed for seed in _list(before.get("seeds")) if isinstance(seed, int)]
            now["seeds"] = list[JSON](sorted({*earlier, *self.seeds}))
            for key in ("table", "settings"):
                if before.get(key) != now[key]:
                    raise ConfigError(
                        f"{self.folder}: holds a study with other {key}: {json.dumps(before.get(key))}; "
                        f"this command has {json.dumps(now[key])}",
                        "give the same options, or another --output-dir",
                    )
            changed = [
                name for name, said in _mapping(before.get("rows")).items() if _mapping(now["rows"])[name] != said
            ]
            if changed:
                raise ConfigError(
                    f"{self.folder}: its runs of row {changed[0]} were trained with other options",
                    "give another --output-dir",
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(now, indent=1) + "\n").encode())


def read_study(folder: Path) -> Study:
    """Return the study that a folder holds.

    Raises:
        ConfigError: it holds none, or its table is gone.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ConfigError(
            f"{folder}: not the folder of an ablation ({RECORD} is missing)", "give what ablate run printed"
        )
    record = _read(path)
    said = _mapping(record.get("settings"))
    scale = next((known for known in SCALES if known == said.get("scale")), None)
    if scale is None:
        raise ConfigError(f"{path}: unknown scale {said.get('scale')!r}", f"known: {', '.join(SCALES)}")
    steps, every = said.get("steps"), said.get("evaluate_every")
    settings = Settings(
        scale,
        Path(str(said.get("data"))),
        steps if isinstance(steps, int) else None,
        every if isinstance(every, int) else None,
        tuple(map(str, _list(said.get("overrides")))),
    )
    info = find_table(str(record.get("table")))
    names = [row.name for row in info.table.at(scale) if row.name in _mapping(record.get("rows"))]
    seeds = tuple(seed for seed in _list(record.get("seeds")) if isinstance(seed, int))
    return Study(info, settings, tuple(info.table.at(scale, names)), seeds, folder)


def _evaluation(folder: Path, answer: Answer) -> list[str]:
    who = [] if answer.branch is None else ["--branch", str(answer.branch)]
    suppressed = [] if answer.nms is None else ["--nms", str(answer.nms)]
    return ["eval", str(folder), "--checkpoint", "last", *who, *suppressed, "--json"]


def _describe(study: Study) -> dict[str, JSON]:
    settings = study.settings
    return {
        "table": study.info.reference,
        "settings": {
            "scale": settings.scale,
            "data": str(settings.data),
            "steps": settings.steps,
            "evaluate_every": settings.evaluate_every,
            "overrides": list(settings.overrides),
        },
        "rows": {row.name: list(row.at(settings.scale).arguments()) for row in study.rows},
        "seeds": list(study.seeds),
    }


def _read(path: Path) -> dict[str, JSON]:
    try:
        return read_json(path, lambda message: ConfigError(message, "run the ablation in another --output-dir"))
    except ConfigError as error:
        if isinstance(error.__cause__, OSError):
            raise OutputError(error.message, "check its permissions") from error.__cause__
        raise


def _mapping(value: object) -> Mapping[str, JSON]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[JSON]:
    return value if isinstance(value, list) else []
