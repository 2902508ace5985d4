"""``loradetr analyze-loss``: the paper's Figure 3 from the logs of any runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_detr.cli.choices import one_of
from lora_detr.cli.console import console
from lora_detr.errors import ConfigError


def analyze_loss(
    runs: Annotated[list[str], typer.Argument(help="Run, ablation, row of one, or log.txt.", metavar="[LABEL=]RUN")],
    layer: Annotated[str, typer.Option(help="Decoder layers to sum.", metavar="all|last|N")] = "all",
    by: Annotated[
        str, typer.Option(help="One point per logged step, or per epoch (its mean).", metavar="step|epoch")
    ] = "step",
    smooth: Annotated[float, typer.Option(help="Epochs to average over.", metavar="EPOCHS", min=0)] = 1.0,
    reach_loss: Annotated[
        float | None, typer.Option(help="Loss to reach (the first label's last).", metavar="LOSS")
    ] = None,
    reach_ap: Annotated[
        float | None,
        typer.Option(help="AP to reach, 0 to 1 (the first label's last).", metavar="AP", min=0, max=1),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Folder for pictures, CSV and summary.", metavar="DIR")
    ] = Path("loss_analysis"),
) -> None:
    """Plot one-to-one losses by epoch, and report how fast they fall.

    Runs of one label are seeds: their mean is drawn, in a band from the lowest to the highest.
    Example: loradetr analyze-loss control=runs/a control=runs/b lora3=runs/c
    """
    from lora_detr.experiments.losses.analysis import analyse
    from lora_detr.experiments.losses.logs import POINTS

    out = console()
    for text in analyse(
        runs,
        layer=_layer(layer),
        smooth=smooth,
        loss=reach_loss,
        precision=reach_ap,
        folder=output_dir,
        by=one_of("--by", by, POINTS, "an epoch's mean is of all its steps"),
    ):
        out.print(text, soft_wrap=True)


def _layer(text: str) -> int | None:
    """Return the layer that is meant: None for all, -1 for the last."""
    if text == "all":
        return None
    if text == "last":
        return -1
    if text.isdigit():
        return int(text)
    raise ConfigError(f"--layer {text}: expected all, last or the number of a layer, 0 first", "all is Figure 3's sum")
