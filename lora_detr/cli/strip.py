"""``loradetr strip``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lora_detr.cli.choices import checkpoint_option, json_report_option, no_ema_option, which_checkpoint
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log
from lora_detr.json_value import json_text

if TYPE_CHECKING:
    from lora_detr.deploy.strip import StripReport


def strip(
    model: Annotated[Path, typer.Argument(help="Run, checkpoint or official .pth.", metavar="MODEL")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (RUN/stripped.safetensors).", metavar="FILE")
    ] = None,
    checkpoint: Annotated[str, checkpoint_option()] = "best",
    no_ema: Annotated[bool, no_ema_option()] = False,
    branch: Annotated[int | None, typer.Option(help="Keep this branch, for use with NMS.", min=0, metavar="N")] = None,
    inputs: Annotated[int, typer.Option(help="Number of images in the proof.", min=1, metavar="N")] = 8,
    as_json: Annotated[bool, json_report_option()] = False,
) -> None:
    """Drop the branches and prove that inference is bit-identical.

    The checkpoint with its branches executed, and the written file in another process, must agree on every bit.
    Example: loradetr strip runs/deformable-tiny-lora3-1
    """
    from lora_detr.checkpoints.opened import open_run
    from lora_detr.deploy.proof_images import proof_images
    from lora_detr.deploy.strip import strip as strip_run
    from lora_detr.deploy.strip import write_report

    show_log(console(stderr=True))
    which = which_checkpoint(checkpoint)
    opened = open_run(model, which, ema=not no_ema)
    target = output or opened.stripped
    images, described = proof_images(opened, inputs)
    report = strip_run(opened, target, images, described, branch)
    write_report(report, target)
    if as_json:
        sys.stdout.write(json_text(report.to_json(), indent=1) + "\n")
        return
    show_report(console(), report, target)


def show_report(out: Console, report: StripReport, target: Path) -> None:
    """Print what was proven, and what the detector costs before and after."""
    if report.branch == "primary":
        verdict = f"proven on {report.inputs}, {report.batches} forward passes: logits and boxes are equal bit for bit"
    else:
        difference = f"largest difference {report.largest_difference:.1e}"
        verdict = f"checked on {report.inputs}: branch {report.branch} merged, {difference}"
    out.print(f"{report.source}{', averaged weights' if report.averaged else ''}", soft_wrap=True)
    out.print(verdict, soft_wrap=True)
    out.print(f"{'':<12}{'before':>14}{'after':>14}")
    out.print(f"{'parameters':<12}{report.parameters_before:>14,}{report.parameters_after:>14,}")
    out.print(f"{'megabytes':<12}{report.bytes_before / 1e6:>14.1f}{report.bytes_after / 1e6:>14.1f}")
    out.print(f"{'ms per batch':<12}{report.seconds_before * 1e3:>14.1f}{report.seconds_after * 1e3:>14.1f}")
    out.print(f"{'GFLOPs':<12}{'':>14}{report.gflops:>14.2f}  (as the detector built without branches)")
    out.print(f"wrote {target}", soft_wrap=True)
