"""``loradetr eval``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from lora_detr.cli.choices import (
    EXPORTED,
    bad_data,
    checkpoint_option,
    data_format_option,
    data_set,
    device_option,
    json_option,
    nms_option,
    no_ema_option,
    which_checkpoint,
)
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log
from lora_detr.errors import ConfigError, printable
from lora_detr.json_value import json_text
from lora_detr.processes.process import own_rank
from lora_detr.records.display import figure

WHAT, HOW = "What is evaluated", "How"

if TYPE_CHECKING:
    from lora_detr.evaluation.coco_eval import CocoMetrics


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run, checkpoint, stripped file, .pth or .onnx.", metavar="MODEL")],
    data: Annotated[
        Path | None, typer.Option(help="Data set (the run's own).", metavar="PATH", rich_help_panel=WHAT)
    ] = None,
    data_format: Annotated[str | None, data_format_option(rich_help_panel=WHAT)] = None,
    checkpoint: Annotated[str, checkpoint_option(rich_help_panel=WHAT)] = "best",
    branch: Annotated[
        str, typer.Option(help="Part to evaluate.", metavar="primary|N|all", rich_help_panel=WHAT)
    ] = "primary",
    no_ema: Annotated[bool, no_ema_option(rich_help_panel=WHAT)] = False,
    nms: Annotated[float | None, nms_option(rich_help_panel=WHAT)] = None,
    on_bad_data: Annotated[
        str | None,
        typer.Option(help="Stop at bad data, or skip (the run's).", metavar="error|skip", rich_help_panel=WHAT),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Allow images outside their folder.", rich_help_panel=WHAT)
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Write COCO results here.", metavar="FILE", rich_help_panel=HOW)
    ] = None,
    confusion: Annotated[
        Path | None,
        typer.Option(
            help="Write confusion matrix and error kinds here (.json or .csv).", metavar="FILE", rich_help_panel=HOW
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per forward pass (the run's).", min=1, metavar="N", rich_help_panel=HOW)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that load images (1).", min=0, metavar="N", rich_help_panel=HOW)
    ] = None,
    device: Annotated[str, device_option(rich_help_panel=HOW)] = "auto",
    gpus: Annotated[
        int | None, typer.Option(help="GPUs, one process each (all).", metavar="N", rich_help_panel=HOW)
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Processes with --device cpu (1).", metavar="N", rich_help_panel=HOW)
    ] = None,
    as_json: Annotated[bool, json_option(rich_help_panel=HOW)] = False,
) -> None:
    """Evaluate on the validation split: COCO numbers, class table.

    Example: loradetr eval runs/deformable-tiny-lora3-1
    """
    from lora_detr.processes.launch import launch_if_wanted

    if launch_if_wanted(device, gpus, nproc):
        return
    out = console()
    show_log(console(stderr=True))
    part, which = _part(branch), which_checkpoint(checkpoint)
    common: dict[str, Any] = {
        "data": data_set(data),
        "data_format": data_format,
        "nms_iou": nms,
        "on_bad_data": None if on_bad_data is None else bad_data(on_bad_data),
        "allow_outside": allow_outside,
        "predictions": predictions,
        "confusion": confusion,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
    }

    def say(text: str) -> None:
        if not as_json:
            out.print(text, soft_wrap=True)

    if model.suffix == EXPORTED:
        # Apart, since it works where no detector can be built.
        from lora_detr.runs.evaluate_exported import evaluate_exported

        if part is not None:
            raise ConfigError(f"--branch {branch}: {model} has no branches", "give the run directory it comes from")
        found = {"primary": evaluate_exported(model, say=say, **common)}
    else:
        from lora_detr.runs.evaluate import evaluate_parts

        found = evaluate_parts(model, which=which, part=part, ema=not no_ema, say=say, **common)
    if as_json:
        if own_rank() == 0:
            parts = {name: metrics.to_json() for name, metrics in found.items()}
            sys.stdout.write(json_text(parts if part == "all" else next(iter(parts.values()))) + "\n")
        return
    if part == "all":
        out.print(_parts_table(found))
        return
    show_metrics(out, next(iter(found.values())))


def show_metrics(out: Console, metrics: CocoMetrics) -> None:
    """Print COCO's twelve numbers, a table of classes, and how the detector is best used."""
    from lora_detr.evaluation.operating_point import usage_lines

    numbers = [f"{name} {figure(value)}" for name, value in metrics.values.items()]
    out.print("  ".join(numbers[:6]))
    out.print("  ".join(numbers[6:]))
    out.print(_class_table(metrics))
    for line in usage_lines(metrics):
        out.print(line, soft_wrap=True)
    if any(value < 0 for value in metrics.values.values()):
        out.print("-: nothing to measure, no object of that kind or size")


def _part(text: str) -> int | Literal["all"] | None:
    if text == "primary":
        return None
    if text == "all":
        return "all"
    if text.isdigit():
        return int(text)
    raise ConfigError(
        f"--branch {text}: expected primary, all or the number of a branch, 0 first", "primary is what strip keeps"
    )


def _parts_table(found: dict[str, CocoMetrics]) -> Table:
    names = list(next(iter(found.values())).values)[:6]
    table = Table("part", box=None)
    for name in names:
        table.add_column(name, justify="right")
    for part, metrics in found.items():
        table.add_row(part, *(figure(metrics.values[name]) for name in names))
    return table


def _class_table(metrics: CocoMetrics) -> Table:
    table = Table("class", "id", box=None)
    for name in ("objects", "AP", "AP50"):
        table.add_column(name, justify="right")
    for row in metrics.per_class:
        table.add_row(printable(row.name), str(row.category_id), f"{row.objects:,}", figure(row.AP), figure(row.AP50))
    return table
