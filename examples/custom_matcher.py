"""Train with a matcher of one's own for two epochs, then drop the branch: ``python examples/custom_matcher.py``.

With two arguments, those are data (a COCO folder, or the name of a generated set) and the run directory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lora_detr.checkpoints.opened import open_run
from lora_detr.cli.console import console
from lora_detr.cli.progress import ConsoleDisplay
from lora_detr.deploy.proof_images import proof_images
from lora_detr.deploy.strip import strip
from lora_detr.runs import run
from lora_detr.runs.request import Request, resolve
from lora_detr.structures import Assignment, PaddedTargets, Prediction


class NearestCentres:
    """Give each target the k queries whose boxes have the nearest centres; any class with such a call will do."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, prediction: Prediction, targets: PaddedTargets) -> Assignment:
        """Match predictions [G, B, Q, ...] with targets [B, T]; scores in [0, 1] are the soft targets of classes."""
        centres = prediction.boxes.detach()[..., :2]
        nearest = torch.cdist(targets.boxes[None, ..., :2], centres).topk(self.k, largest=False)  # [G, B, T, k]
        mask = targets.mask[None, :, :, None].expand_as(nearest.indices)
        return Assignment(nearest.indices, torch.exp(-nearest.values), mask)


def main(data: Path, output: Path, overrides: Sequence[str] = ()) -> Path:
    """Train one LoRA branch with ``NearestCentres``; return the stripped file, which is proved to predict the same."""
    named = {"train.epochs": 2}
    resolved = resolve(Request(preset="deformable-tiny", aux=1, data=data, overrides=overrides, named=named))
    run.start(resolved, output, None, False, ConsoleDisplay(console()), branch_matchers=[NearestCentres(k=3)])
    opened = open_run(output)
    stripped = output / "stripped.safetensors"
    strip(opened, stripped, *proof_images(opened, 4))
    return stripped


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*(given or (Path("shapes-easy"), Path("runs/custom-matcher"))))
