"""A table of runs as data: rows, the options that each adds to ``loradetr train``, and what the paper published.

Tables are YAML files in ``configs/ablations``; a new file is a new table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from lora_detr.config.base import Strict
from lora_detr.config.load import validate
from lora_detr.config.presets import configs_root
from lora_detr.config.yaml_subset import read_yaml
from lora_detr.errors import ConfigError, nearest
from lora_detr.evaluation.coco_eval import METRICS
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.runs.request import Request, preset_of

Scale = Literal["paper", "tiny"]
SCALES: tuple[Scale, ...] = ("paper", "tiny")

COST = ("parameters", "minutes")
"""Published figures that are no accuracy: millions of parameters, minutes of an epoch."""


class TrainOptions(Strict):
    """What a row adds to ``loradetr train``; each field is the option of the same name."""

    baseline: str | None = None
    """``--baseline``; either this or ``preset``."""
    preset: str | None = None
    """``--preset``."""
    aux: int | None = None
    """``--aux``."""
    rank: int | None = None
    """``--rank``."""
    branches: tuple[str, ...] = ()
    """``--branch``, once each."""
    branch_kind: str | None = None
    """``--branch-kind``."""
    hybrid: int | None = None
    """``--hybrid``."""
    dac: bool = False
    """``--dac``."""
    set: dict[str, Any] = Field(default_factory=dict)
    """``--set``: key path and value."""

    @model_validator(mode="after")
    def _one_start(self) -> TrainOptions:
        if (self.baseline is None) == (self.preset is None):
            raise ValueError("give baseline or preset")
        return self

    def overrides(self) -> list[str]:
        """Return ``set`` as ``--set`` takes it."""
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.set.items()]

    def arguments(self) -> list[str]:
        """Return the options as they are typed."""
        single = {"baseline": self.baseline, "preset": self.preset, "aux": self.aux, "branch-kind": self.branch_kind}
        single |= {"rank": self.rank, "hybrid": self.hybrid}
        given = [text for name, value in single.items() if value is not None for text in (f"--{name}", str(value))]
        given += [text for branch in self.branches for text in ("--branch", branch)]
        given += ["--dac"] if self.dac else []
        return given + [text for override in self.overrides() for text in ("--set", override)]

    def request(self, data: Path, overrides: Sequence[str] = ()) -> Request:
        """Return the same as ``train`` understands it, on some data, with further ``--set`` texts."""
        chosen = self.model_dump(exclude={"set"})
        return Request(**chosen, data=data, overrides=(*self.overrides(), *overrides))


class TinyChange(Strict):
    """What differs at ``--scale tiny``, besides the preset, which then is the small one of the same system."""

    preset: str | None = None
    """The small preset; by default that of the baseline."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Takes the place of values with the same keys."""


class Answer(Strict):
    """A part of the detector that is evaluated."""

    name: str
    """As the report names it."""
    branch: int | None = None
    """The branch that answers; by default the primary path."""
    nms: float | None = None
    """Duplicates above this IoU are dropped."""

    @property
    def figure(self) -> str:
        """AP of this answer, as columns and published figures name it."""
        return f"{METRICS[0]}, {self.name}"


class TableRow(Strict):
    """One row."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Of its folder."""
    label: str
    """As the report names it."""
    options: TrainOptions
    """What it adds to ``loradetr train``."""
    tiny: TinyChange = TinyChange()
    """What differs at ``--scale tiny``."""
    scales: tuple[Scale, ...] = SCALES
    """Where it is run."""
    published: dict[str, float] = Field(default_factory=dict)
    """Figures of the paper: COCO's numbers in percent, ``parameters`` in millions, ``minutes`` an epoch."""

    def at(self, scale: Scale) -> TrainOptions:
        """Return the options of a scale.

        Raises:
            ConfigError: the row has no small preset.
        """
        if scale == "paper":
            return self.options
        if self.options.baseline is not None and self.options.baseline.startswith(PREFIX):
            # Such a detector has one size, its own.
            return self.options.model_copy(update={"set": {**self.options.set, **self.tiny.set}})
        preset = self.tiny.preset
        if preset is None:
            if self.options.baseline is None:
                raise ConfigError(f"row {self.name}: no preset for --scale tiny", "give one: tiny: {preset: ...}")
            preset = preset_of(self.options.request(Path()), tiny=True)
        changed = {"baseline": None, "preset": preset, "set": {**self.options.set, **self.tiny.set}}
        return self.options.model_copy(update=changed)


class Comparable(Strict):
    """What a run must have been trained and evaluated on for its figures to stand beside the published ones.

    Besides, it must be of the paper's presets, with their epochs and without further settings.
    """

    train_images: int = 118_287
    """Of COCO train2017."""
    val_images: int = 5_000
    """Of COCO val2017."""
    images_a_step: int = 16
    """On all GPUs together; the paper has two on each of eight."""


class Table(Strict):
    """A table of runs."""

    title: str
    """Headline of the report."""
    source: str = ""
    """Where the published figures come from, and what they were measured on."""
    comparable: Comparable = Comparable()
    """What is needed to compare measured with published figures."""
    measures: Literal["accuracy", "cost"] = "accuracy"
    """Whether rows are trained and evaluated, or only their steps timed."""
    answers: tuple[Answer, ...] = (Answer(name="primary"),)
    """What is evaluated at the end of each run; the first one is the primary path."""
    rows: tuple[TableRow, ...] = Field(min_length=1)
    """In the order of the report."""
    reference: str | None = None
    """Row that the others are compared with, seed by seed; by default the first one."""

    @model_validator(mode="after")
    def _names(self) -> Table:
        names = [row.name for row in self.rows]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"rows of the same name: {', '.join(double)}")
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"reference {self.reference} is no row{nearest(self.reference, names)}")
        if self.answers[0].branch is not None or self.answers[0].nms is not None:
            raise ValueError("the first answer is the primary path's, without suppression")
        known = {*METRICS, *COST, *(answer.figure for answer in self.answers[1:])}
        unknown = sorted({key for row in self.rows for key in row.published} - known)
        if unknown:
            raise ValueError(f"unknown published figures: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return self

    def at(self, scale: Scale, names: Sequence[str] = ()) -> list[TableRow]:
        """Return the rows that are run at a scale, or those of them that are named.

        Raises:
            ConfigError: a name is unknown, or the row is not run at this scale.
        """
        here = {row.name: row for row in self.rows if scale in row.scales}
        for name in names:
            if name not in here:
                raise ConfigError(
                    f"--rows {name}: no such row at --scale {scale}{nearest(name, here)}", f"known: {', '.join(here)}"
                )
        return [row for name, row in here.items() if not names or name in names]


@dataclass(frozen=True)
class TableInfo:
    """A table and where it is from.

    Attributes:
        name: of the file, without its suffix.
        path: its file.
        table: its content.
    """

    name: str
    path: Path
    table: Table

    @property
    def reference(self) -> str:
        """What ``find_table`` takes: the name of a table of the package, else the path of its file."""
        return self.name if self.path.parent == tables_root() else str(self.path.resolve())


def tables_root() -> Path:
    """Return the folder of the tables that come with the package."""
    return configs_root() / "ablations"


def list_tables() -> list[TableInfo]:
    """Return all tables that come with the package, by name.

    Raises:
        ConfigError: one of them is invalid.
    """
    return [read_table(path) for path in sorted(tables_root().glob("*.yaml"))]


def find_table(name: str) -> TableInfo:
    """Return a table by its name, or by the path of a YAML file.

    Raises:
        ConfigError: there is none, or it is invalid.
    """
    if name.endswith((".yaml", ".yml")):
        return read_table(Path(name))
    known = {path.stem: path for path in sorted(tables_root().glob("*.yaml"))}
    if name not in known:
        raise ConfigError(
            f"ablate: unknown table '{name}'{nearest(name, known)}",
            f"known: {', '.join(known)}; a file ending in .yaml is a table too",
        )
    return read_table(known[name])


def read_table(path: Path) -> TableInfo:
    """Read a table.

    Raises:
        ConfigError: the file cannot be read, or a value is wrong; one line a fault.
    """
    raw = read_yaml(path)
    return TableInfo(path.stem, path, validate(Table, raw, dict.fromkeys(raw, f"file {path}")))
