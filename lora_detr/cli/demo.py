"""``loradetr demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.console import console
from lora_detr.cli.eval import show_metrics
from lora_detr.cli.progress import ConsoleDisplay, show_log
from lora_detr.cli.strip import show_report

PRESET = "deformable-tiny-lora3"
DATA = "shapes-easy"
PICTURES = 6
RECIPE = (
    # The images are small; at a size near their own a minute holds more steps.
    "data.train.scales=[192]",
    "data.evaluation.size=192",
    # With five objects at most for 100 queries, the primary path must learn above all to keep one query an object.
    "loss.primary.weights.classification=10.0",
    "evaluation.every=1",
)


def demo(
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Output directory (runs/demo-n).", metavar="DIR"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", min=1, metavar="N")] = 4,
    seed: Annotated[int, typer.Option(help="Random seed.", metavar="N")] = 42,
) -> None:
    """See it work: make data, train, evaluate, strip, draw.

    Needs no download, no GPU and about four minutes on two cores.
    Example: loradetr demo --output-dir runs/demo
    """
    from lora_detr.checkpoints.opened import open_run
    from lora_detr.data.synthetic.sets import SPECS, cached
    from lora_detr.deploy.proof_images import proof_images
    from lora_detr.deploy.strip import strip as strip_run
    from lora_detr.deploy.strip import write_report
    from lora_detr.evaluation.comparison import write_comparison
    from lora_detr.evaluation.predictor import open_predictor
    from lora_detr.recipe.loaders import read_splits
    from lora_detr.records.plots import write_loss_picture
    from lora_detr.records.run_directory import RunDirectory, next_run
    from lora_detr.runs import run
    from lora_detr.runs.evaluate import PRIMARY, evaluate_parts
    from lora_detr.runs.request import Request, resolve

    out, started = console(), time.monotonic()
    show_log(out)
    output = output_dir or next_run(Path("runs"), "demo")
    RunDirectory(output).check_free()

    def heading(number: int, text: str) -> None:
        out.print(f"\n[{number}/5] {text}", style="bold", soft_wrap=True)

    heading(1, f"data: {DATA}, {len(SPECS[DATA].classes)} kinds of generated shapes")
    data = cached(DATA)
    out.print(f"{data}", soft_wrap=True)

    heading(2, "train: Deformable-DETR with three LoRA branches, each with an assignment of its own")
    named: dict[str, object] = {"train.epochs": epochs, "train.seed": seed}
    resolved = resolve(Request(preset=PRESET, data=data, overrides=RECIPE, named=named))
    run.start(resolved, output, None, False, ConsoleDisplay(out))

    heading(3, "evaluate: the best checkpoint, branches unused")
    metrics = evaluate_parts(output, say=lambda text: out.print(text, soft_wrap=True))[PRIMARY]
    show_metrics(out, metrics)

    heading(4, "strip: drop the branches, and prove that nothing changed")
    opened = open_run(output)
    stripped = output / "stripped.safetensors"
    report = strip_run(opened, stripped, *proof_images(opened, 8))
    write_report(report, stripped)
    show_report(out, report, stripped)

    heading(5, "pictures: what the stripped detector sees, and how it learned")
    splits = read_splits(data, resolved.loaded.config.data)
    assert splits.val is not None
    write_comparison(output / "predictions.png", open_predictor(stripped, "best", device="auto"), splits.val, PICTURES)
    write_loss_picture(RunDirectory(output), output / "losses.png")
    for name, what in (
        ("predictions.png", "ground truth beside predictions"),
        ("losses.png", "loss of every branch, and AP"),
        ("results.png", "everything that was logged"),
        ("stripped.safetensors", "the detector to deploy"),
    ):
        out.print(f"{what:<32}{output / name}", soft_wrap=True)

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    result = f"AP50 {metrics.values['AP50']:.3f} on {len(splits.val)} images it had not seen"
    out.print(f"\ndone in {minutes} min {seconds} s: {result}")
    out.print("next, with images of your own, and with data of your own in COCO format:")
    out.print(f"  loradetr predict {stripped} IMAGES", soft_wrap=True)
    out.print(f"  loradetr train --preset {PRESET} --data DIR", soft_wrap=True)
