"""``loradetr eval``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lora_detr.cli.choices import which_checkpoint
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log
from lora_detr.errors import ConfigError

if TYPE_CHECKING:
    from lora_detr.evaluation.coco_eval import CocoMetrics


def evaluate(
    model: Annotated[Path, typer.Argument(help="Run directory, checkpoint directory or stripped file.")],
    data: Annotated[Path | None, typer.Option(help="COCO folder or YAML (default: the run's own data).")] = None,
    checkpoint: Annotated[str, typer.Option(help="best or last, of a run directory.")] = "best",
    branch: Annotated[str, typer.Option(help="primary, or the number of a branch.")] = "primary",
    nms: Annotated[
        float | None, typer.Option(help="Suppress duplicates above this IoU, e.g. 0.7.", min=0, max=1)
    ] = None,
    predictions: Annotated[Path | None, typer.Option(help="Where to write COCO results.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images of one forward pass.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.", min=0)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Evaluate on the validation split: COCO's 12 numbers and a table of classes.

    Example: loradetr eval runs/deformable-tiny-lora3-1
    """
    from lora_detr.training.evaluate import evaluate_model

    out = console()
    show_log(console(stderr=True))
    metrics = evaluate_model(
        model,
        data=data,
        which=which_checkpoint(checkpoint),
        branch=_branch_index(branch),
        nms_iou=nms,
        predictions=predictions,
        batch_size=batch_size,
        workers=workers,
        device=device,
        say=(lambda text: None) if as_json else (lambda text: out.print(text, soft_wrap=True)),
    )
    if as_json:
        sys.stdout.write(json.dumps(metrics.to_json()) + "\n")
        return
    out.print("  ".join(f"{name} {value:.3f}" for name, value in list(metrics.values.items())[:6]))
    out.print("  ".join(f"{name} {value:.3f}" for name, value in list(metrics.values.items())[6:]))
    out.print(_class_table(metrics))


def _branch_index(text: str) -> int | None:
    if text == "primary":
        return None
    if text.isdigit():
        return int(text)
    raise ConfigError(
        f"--branch {text}: expected primary or the number of a branch, 0 first", "primary is what strip keeps"
    )


def _class_table(metrics: CocoMetrics) -> Table:
    table = Table("class", "id", box=None)
    for name in ("objects", "AP", "AP50"):
        table.add_column(name, justify="right")
    for row in metrics.per_class:
        table.add_row(row.name, str(row.category_id), f"{row.objects:,}", f"{row.AP:.3f}", f"{row.AP50:.3f}")
    return table
