"""``loradetr strip``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.choices import which_checkpoint
from lora_detr.cli.console import console


def strip(
    model: Annotated[Path, typer.Argument(help="Run directory or checkpoint directory.")],
    output: Annotated[Path | None, typer.Option(help="File to write (default: RUN/stripped.safetensors).")] = None,
    checkpoint: Annotated[str, typer.Option(help="best or last, of a run directory.")] = "best",
    branch: Annotated[
        int | None, typer.Option(help="Keep this branch, merged into the last layer, for use with NMS.", min=0)
    ] = None,
    inputs: Annotated[int, typer.Option(help="Images of the proof.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
) -> None:
    """Drop the branches and prove that inference is bit-identical.

    The checkpoint with its branches executed, and the written file in another process, must agree on every bit.
    Example: loradetr strip runs/deformable-tiny-lora3-1
    """
    from lora_detr.atomic_files import write_file
    from lora_detr.training.opened import open_run
    from lora_detr.training.proof_images import proof_images
    from lora_detr.training.strip import refuse_stripped
    from lora_detr.training.strip import strip as strip_run

    which = which_checkpoint(checkpoint)
    refuse_stripped(model)
    opened = open_run(model, which)
    target = output or opened.run / "stripped.safetensors"
    images, described = proof_images(opened, inputs)
    report = strip_run(opened, target, images, described, branch)
    text = json.dumps(report.to_json(), indent=1)
    write_file(target.with_name("strip_report.json"), (text + "\n").encode())
    if as_json:
        sys.stdout.write(text + "\n")
        return
    out = console()
    if branch is None:
        verdict = f"proven on {described}, {report.batches} batches: logits and boxes are equal bit for bit"
    else:
        verdict = f"checked on {described}: branch {branch} merged, largest difference {report.largest_difference:.1e}"
    out.print(verdict, soft_wrap=True)
    out.print(f"{'':<12}{'before':>14}{'after':>14}")
    out.print(f"{'parameters':<12}{report.parameters_before:>14,}{report.parameters_after:>14,}")
    out.print(f"{'megabytes':<12}{report.bytes_before / 1e6:>14.1f}{report.bytes_after / 1e6:>14.1f}")
    out.print(f"{'ms a batch':<12}{report.seconds_before * 1e3:>14.1f}{report.seconds_after * 1e3:>14.1f}")
    out.print(f"{'GFLOPs':<12}{'':>14}{report.gflops:>14.2f}  (as the detector built without branches)")
    out.print(f"wrote {target}", soft_wrap=True)
