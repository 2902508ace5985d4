"""What a training step of each row of a table costs (the paper's Table 6): time, memory, parameters.

All rows are built with random weights and take steps in turn in one process, so a machine's changing speed touches all
alike; ratios are to the first row. Memory is what the first step takes in a process of its own, gradients and moments
included.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lora_detr.atomic_files import prepare_directory, write_file
from lora_detr.errors import counted
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.experiments.cost.memory import megabytes_alone, rise
from lora_detr.experiments.cost.synthetic_workload import Inputs, SyntheticTraining, without_weights
from lora_detr.experiments.markdown import markdown_table
from lora_detr.experiments.tables.results import COCO_CLASSES, parameters
from lora_detr.experiments.tables.table import Scale, TableInfo, TableRow, find_table
from lora_detr.recipe.run_config import RunConfig
from lora_detr.records.environment import environment
from lora_detr.runs.request import resolve

OBJECTS = 7
"""Of an image of COCO, on average."""


@dataclass(frozen=True)
class RowCost:
    """What a row costs.

    Attributes:
        name: of the row.
        seconds: median of a step.
        ratio: to the first row, the median over rounds.
        lowest: the least of those ratios.
        highest: the greatest.
        memory_mb: of a step; None where the system does not tell.
        memory_ratio: to the first row.
        parameters: that are trained, in millions.
    """

    name: str
    seconds: float
    ratio: float
    lowest: float
    highest: float
    memory_mb: float | None
    memory_ratio: float | None
    parameters: float


@dataclass(frozen=True)
class CostStudy:
    """A table whose cost is measured.

    Attributes:
        info: the table.
        scale: whether presets are those of the paper or the small ones.
        rows: that are measured; the first one is what others are compared with.
        inputs: what all are given.
        rounds: that count.
    """

    info: TableInfo
    scale: Scale
    rows: tuple[TableRow, ...]
    inputs: Inputs
    rounds: int


def usual_inputs(scale: Scale, device: str) -> Inputs:
    """Return images as a scale has them, the paper's smaller and one at a time where there is no GPU."""
    if scale == "tiny":
        return Inputs((256, 256), 4, OBJECTS, device)
    on_gpu = torch.device(device).type == "cuda"
    return Inputs((800, 1216), 2, OBJECTS, device) if on_gpu else Inputs((480, 640), 1, OBJECTS, device)


def measure(study: CostStudy, say: Callable[[str], None]) -> list[RowCost]:
    """Measure all rows.

    Args:
        study: what is measured.
        say: shows a line.

    Raises:
        ConfigError: a row's options are wrong.
    """
    trainings = []
    for row in study.rows:
        trainings.append(training_of(row, study.scale, study.inputs))
        say(f"built {row.label}")
    timings = interleaved([one.step for one in trainings], study.rounds, device=study.inputs.device)
    counts = [parameters(row, study.scale) for row in study.rows]
    trainings.clear()
    say("timed; now the memory of each in a process of its own")
    same = [json.dumps(asdict(study.inputs)), str(torch.get_num_threads())]
    memory = [
        megabytes_alone("-m", [__name__, study.info.reference, study.scale, row.name, *same]) for row in study.rows
    ]
    first = memory[0]
    return [
        RowCost(
            row.name,
            timing.seconds,
            timing.ratio,
            timing.lowest,
            timing.highest,
            took,
            None if took is None or first is None else took / first,
            count,
        )
        for row, timing, took, count in zip(study.rows, timings, memory, counts, strict=True)
    ]


def training_of(row: TableRow, scale: Scale, inputs: Inputs) -> SyntheticTraining:
    """Return a row as it is measured, in training mode."""
    workload = SyntheticTraining(_config(row, scale), COCO_CLASSES, inputs)
    workload.model.train()
    return workload


def _config(row: TableRow, scale: Scale) -> RunConfig:
    # Which weights a machine has must not decide what is measured.
    request = row.at(scale).request(Path("no-data"), ["model.backbone.weights=imagenet"])
    return without_weights(resolve(request).loaded.config)


def write_cost(study: CostStudy, costs: Sequence[RowCost], folder: Path, command: str) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and ``cost.json`` into a folder, and return them.

    Raises:
        OutputError: a file cannot be written.
    """
    prepare_directory(folder)
    facts = dict(environment(torch.device(study.inputs.device)))
    content = {
        "table": study.info.reference,
        "scale": study.scale,
        "size": study.inputs.size,
        "batch": study.inputs.batch,
        "rounds": study.rounds,
        "environment": facts,
        "rows": [asdict(cost) for cost in costs],
    }
    text = {
        "report.md": cost_as_markdown(study, costs, command, facts),
        "report.csv": cost_as_csv(study, costs),
        "cost.json": json.dumps(content, indent=1) + "\n",
    }
    for name, said in text.items():
        write_file(folder / name, said.encode())
    return [folder / name for name in text]


def cost_table(study: CostStudy, costs: Sequence[RowCost]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells, published and measured side by side."""
    head = ["row", "*published* minutes", "step time", "lowest to highest", "memory", "*published* parameters"]
    head.append("parameters")
    cells = []
    for row, cost in zip(study.rows, costs, strict=True):
        minutes, millions = (row.published.get(key) for key in ("minutes", "parameters"))
        cells.append(
            [
                row.label,
                "-" if minutes is None else f"{minutes:.0f}",
                f"{cost.ratio:.2f}",
                f"{cost.lowest:.2f} to {cost.highest:.2f}",
                "-" if cost.memory_ratio is None else f"{cost.memory_ratio:.2f}",
                "-" if millions is None else f"{millions:.1f} M",
                f"{cost.parameters:.2f} M",
            ]
        )
    return head, cells


def cost_as_markdown(study: CostStudy, costs: Sequence[RowCost], command: str, facts: Mapping[str, object]) -> str:
    """Return the report as Markdown."""
    head, cells = cost_table(study, costs)
    height, width = study.inputs.size
    small = " with small presets" if study.scale == "tiny" else ""
    first = costs[0]
    memory = "" if first.memory_mb is None else f" and {first.memory_mb:.0f} MB"
    lines = [
        f"# {study.info.table.title}",
        "",
        f"Published figures: LoRA-DETR (AAAI 2026); {study.info.table.source}.",
        "",
        f"**Not comparable with the published minutes:** steps on made-up images{small}, not epochs of COCO on 8 A100.",
        "",
        f"Measured by `{command}`: {counted(study.inputs.batch, 'image')} of {height}x{width}, "
        f"{study.rounds} rounds of all rows",
        f"in turn in one process, {COCO_CLASSES} classes. Ratios are to the first row, which takes",
        f"{first.seconds:.2f} s{memory} per step on {facts['gpu'] or 'a CPU'}, "
        f"{counted(torch.get_num_threads(), 'thread')}, attention by {facts['attention']}.",
        "",
        *markdown_table(head, cells),
    ]
    return "\n".join(lines) + "\n"


def cost_as_csv(study: CostStudy, costs: Sequence[RowCost]) -> str:
    """Return the report as CSV."""
    text = io.StringIO(newline="")
    fields = ["label", *asdict(costs[0]), "published_minutes", "published_parameters"]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row, cost in zip(study.rows, costs, strict=True):
        published = {f"published_{key}": row.published.get(key, math.nan) for key in ("minutes", "parameters")}
        writer.writerow({"label": row.label, **asdict(cost), **published})
    return text.getvalue()


def _alone(table: str, scale: Scale, name: str, inputs: str, threads: str) -> None:
    """Print how many bytes the first step of a row adds to what this process holds."""
    torch.set_num_threads(int(threads))
    given = json.loads(inputs)
    images = Inputs(**{**given, "size": tuple(given["size"])})
    (row,) = find_table(table).table.at(scale, [name])
    print(json.dumps(rise(training_of(row, scale, images).step, images.device)))


if __name__ == "__main__":
    _alone(*sys.argv[1:])  # type: ignore[arg-type]
