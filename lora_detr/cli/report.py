"""``loradetr report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.choices import checkpoint_option, data_set, device_option, no_ema_option, which_checkpoint
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log


def report(
    run: Annotated[Path, typer.Argument(help="Run directory or checkpoint.", metavar="RUN")],
    data: Annotated[Path | None, typer.Option(help="COCO folder or YAML (the run's own).", metavar="PATH")] = None,
    checkpoint: Annotated[str, checkpoint_option()] = "best",
    no_ema: Annotated[bool, no_ema_option()] = False,
    device: Annotated[str, device_option()] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write (report.html in the run directory).", metavar="FILE"),
    ] = None,
) -> None:
    """Evaluate a run and write one HTML page about it: accuracy, errors, best and worst images, curves.

    Example: loradetr report runs/deformable-tiny-lora3-1
    """
    from lora_detr.runs.report.page import size_of, write_report

    out = console()
    show_log(console(stderr=True))
    written = write_report(
        run,
        data=data_set(data),
        which=which_checkpoint(checkpoint),
        ema=not no_ema,
        device=device,
        output=output,
        say=lambda text: out.print(text, soft_wrap=True),
    )
    out.print(f"wrote {written} ({size_of(written)})", soft_wrap=True)
