"""``loradetr export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from lora_detr.cli.choices import (
    checkpoint_option,
    data_set,
    json_report_option,
    no_ema_option,
    one_of,
    which_checkpoint,
)
from lora_detr.cli.console import console
from lora_detr.cli.progress import show_log
from lora_detr.errors import ConfigError
from lora_detr.json_value import json_text

if TYPE_CHECKING:
    from lora_detr.deploy.onnx.export import ExportReport

SAMPLERS: tuple[Literal["grid", "gather"], ...] = ("grid", "gather")
PRECISIONS: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")


def export(
    model: Annotated[Path, typer.Argument(help="Run, checkpoint, stripped file or folder, or .pth.", metavar="MODEL")],
    file_format: Annotated[str, typer.Option("--format", help="Format.", metavar="onnx")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write (RUN/model.onnx).", metavar="FILE"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Images of the proof (the run's).", metavar="PATH"),
    ] = None,
    checkpoint: Annotated[str, checkpoint_option()] = "best",
    no_ema: Annotated[bool, no_ema_option()] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Give logits and boxes instead.")] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Take images of any size.")] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option("--with-preprocessing", help="Resize in the graph, from bytes."),
    ] = False,
    precision: Annotated[str, typer.Option(help="Precision.", metavar="fp32|fp16|int8")] = "fp32",
    sampler: Annotated[
        str,
        typer.Option(help="How features are sampled.", metavar="grid|gather"),
    ] = "grid",
    inputs: Annotated[int, typer.Option(help="Images compared.", min=1, metavar="N")] = 8,
    as_json: Annotated[bool, json_report_option()] = False,
) -> None:
    """Write an ONNX file and prove that it predicts the same.

    The file is run by onnxruntime, from image files to boxes; beyond the tolerance nothing is written.
    Example: loradetr export runs/deformable-tiny-lora3-1
    """
    if file_format != "onnx":
        raise ConfigError(f"--format {file_format}: expected onnx", "converters of other formats start from one")
    narrow = one_of("--precision", precision, PRECISIONS, "fp32 predicts the same; the cost of others is printed")
    sampling = one_of("--sampler", sampler, SAMPLERS, "gather is for runtimes that compute GridSample wrongly")
    which = which_checkpoint(checkpoint)
    from lora_detr.checkpoints.exported.versions import require

    require("onnx", "onnxruntime", what="export")
    from lora_detr.checkpoints.opened import open_model
    from lora_detr.deploy.onnx.export import Wanted, place_of
    from lora_detr.deploy.onnx.export import export as export_model
    from lora_detr.deploy.onnx.images import find_images

    show_log(console(stderr=True))
    given = data_set(data)
    opened = open_model(model, which, ema=not no_ema, data=given)
    target = output or place_of(opened, model)
    images = find_images(opened, given, inputs)
    out = console()
    report = export_model(
        opened,
        str(model),
        target,
        Wanted(raw, dynamic, sampling, narrow, with_preprocessing),
        images,
        lambda text: None if as_json else out.print(text, soft_wrap=True),
    )
    if as_json:
        sys.stdout.write(json_text(report.to_json(), indent=1) + "\n")
        return
    show_report(out, report, target)


def show_report(out: Console, report: ExportReport, target: Path) -> None:
    """Print what was proven, and what the file takes and gives."""
    contract, proof = report.contract, report.proof
    out.print(f"compared on {proof.inputs}, from file to boxes, after matching detections:", soft_wrap=True)
    out.print(f"{'size':<18}{'batch':>6}{'images':>8}{'score':>10}{'pixels':>10}{'unmatched':>11}")
    for one in proof.differences:
        out.print(
            f"{one.size:<18}{one.batch:>6}{one.images:>8}{one.score:>10.1e}{one.box:>10.1e}"
            f"{f'{one.unmatched}/{one.detections}':>11}"
        )
    found = proof.precisions
    if found is None:
        out.print("AP not measured: no labelled split; give --data")
    else:
        change, where = found.after - found.before, f"{found.images} images of {found.split}"
        out.print(f"AP {found.before:.4f} -> {found.after:.4f} ({change:+.4f}) on {where}", soft_wrap=True)
    before, after = proof.seconds_before * 1e3, proof.seconds_after * 1e3
    out.print(f"ms per image, from file to boxes: {before:.1f} -> {after:.1f}")
    size = "any size" if contract.height is None else f"{contract.width}x{contract.height}"
    batch = "any number of images" if contract.batch is None else f"{contract.batch} image"
    out.print(f"inputs   images ({contract.input}, {size}, {batch})", soft_wrap=True)
    for name, meaning in contract.further_inputs.items():
        out.print(f"         {name} ({meaning})", soft_wrap=True)
    out.print(f"outputs  {contract.outputs}")
    out.print(f"wrote {target} ({report.bytes / 1e6:.1f} MB)", soft_wrap=True)
