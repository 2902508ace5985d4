"""``loradetr convert``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.choices import checkpoint_option, data_set, json_report_option, no_ema_option, which_checkpoint
from lora_detr.cli.console import console
from lora_detr.json_value import json_text

OFFICIAL, OURS = "From an official file", "To an official file"


def convert(
    source: Annotated[
        Path,
        typer.Argument(help="Official .pth, hf:FOLDER, or a run, checkpoint or stripped file.", metavar="SOURCE"),
    ],
    output: Annotated[Path, typer.Argument(help="New run directory, .pth, or hf:FOLDER.", metavar="OUTPUT")],
    preset: Annotated[
        str | None,
        typer.Option(help="Preset to assume (recognised).", metavar="NAME", rich_help_panel=OFFICIAL),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="System to assume (recognised).", metavar="NAME", rich_help_panel=OFFICIAL),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Data with its classes (the file, or COCO).", metavar="PATH", rich_help_panel=OFFICIAL),
    ] = None,
    checkpoint: Annotated[str, checkpoint_option(rich_help_panel=OURS)] = "best",
    no_ema: Annotated[bool, no_ema_option()] = False,
    as_json: Annotated[bool, json_report_option()] = False,
) -> None:
    """Convert the authors' checkpoints, and folders of transformers (hf:FOLDER), to ours and back.

    Every tensor is kept bit for bit. eval, strip, predict and train --weights also take a .pth as it is.
    Example: loradetr convert official.pth runs/official
    """
    from lora_detr.deploy.conversion import convert as convert_model

    which, data = which_checkpoint(checkpoint), data_set(data)
    done = convert_model(source, output, which=which, ema=not no_ema, preset=preset, baseline=baseline, data=data)
    if as_json:
        sys.stdout.write(json_text(done.to_json(), indent=1) + "\n")
        return
    out = console()
    for line in done.lines():
        out.print(line, soft_wrap=True)
