"""``loradetr train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.console import console
from lora_detr.cli.progress import ConsoleDisplay, show_log
from lora_detr.errors import ConfigError

MODEL, DATA, OPTIMISATION, RUN = "Model", "Data", "Optimisation", "Run"


def train(
    baseline: Annotated[str | None, typer.Option(help="System: deformable.", rich_help_panel=MODEL)] = None,
    aux: Annotated[int | None, typer.Option(help="Number of auxiliary branches.", rich_help_panel=MODEL)] = None,
    preset: Annotated[str | None, typer.Option(help="Preset by name, or a YAML file.", rich_help_panel=MODEL)] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of all branches.", rich_help_panel=MODEL)] = None,
    branch: Annotated[
        list[str] | None, typer.Option(help="One branch, e.g. topk:k=6,tau=0.4; repeatable.", rich_help_panel=MODEL)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="COCO folder, or a YAML naming the paths.", rich_help_panel=DATA)
    ] = None,
    num_classes: Annotated[str | None, typer.Option(help="auto or coco91.", rich_help_panel=DATA)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.", rich_help_panel=DATA)] = None,
    overfit: Annotated[
        int | None, typer.Option(help="Train and evaluate on the first N images.", min=1, rich_help_panel=DATA)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", rich_help_panel=OPTIMISATION)] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps.", rich_help_panel=OPTIMISATION)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step of one process.", rich_help_panel=OPTIMISATION)
    ] = None,
    accum: Annotated[
        int | None, typer.Option(help="Batches added up to one step.", rich_help_panel=OPTIMISATION)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", rich_help_panel=OPTIMISATION)] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.", rich_help_panel=OPTIMISATION)] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", rich_help_panel=OPTIMISATION)] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Run directory (default: runs/PRESET-n).", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run directory.", rich_help_panel=RUN)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUN)] = None,
    config: Annotated[
        list[Path] | None, typer.Option(help="YAML on top of the preset; repeatable.", rich_help_panel=RUN)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, key.path=value; repeatable.", rich_help_panel=RUN)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the summary and stop.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train a detector with auxiliary branches.

    Example: loradetr train --baseline deformable --aux 3 --data DIR
    """
    named: dict[str, object] = {
        "data.num_classes": num_classes,
        "data.workers": workers,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "train.accumulate": accum,
        "train.optimizer.lr": lr,
        "train.precision": precision,
        "train.seed": seed,
        "train.device": device,
    }
    out = console()
    display = ConsoleDisplay(out)
    show_log(out)
    if resume is not None:
        given: list[object] = [value for key, value in named.items() if key not in ("train.epochs", "train.max_steps")]
        given += [baseline, aux, preset, rank, branch, data, overfit, output_dir, config, set_]
        if any(value is not None for value in given) or dry_run:
            raise ConfigError(
                "--resume continues a run with its own settings; only --epochs and --max-steps may be given",
                "start a new run to change anything else",
                code="C07",
            )
        from lora_detr.training import run

        finished = run.resume(resume, epochs, max_steps, display)
    else:
        from lora_detr.training import run
        from lora_detr.training.request import Request, resolve

        request = Request(preset, baseline, aux, rank, branch or (), data, config or (), set_ or (), named=named)
        finished = run.start(resolve(request), output_dir, overfit, dry_run, display)
    if dry_run:
        return
    if finished.metrics is not None:
        out.print(f"AP {finished.metrics.values['AP']:.3f}  AP50 {finished.metrics.values['AP50']:.3f}")
    out.print(f"next: loradetr eval {finished.directory}; loradetr strip {finished.directory}", soft_wrap=True)
