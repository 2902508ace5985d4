"""Draw which queries each assignment rule gives to the objects of one image.

    loradetr demo -o demo
    python examples/assignments.py demo assignments.png

A third argument is the id of another image of the validation split. Rules have their defaults; all look at the same
predictions, those of the last decoder layer's primary path.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from lora_detr.checkpoints.opened import open_run
from lora_detr.config.explain import models_of
from lora_detr.losses.stacking import boxes_refined
from lora_detr.matchers import HungarianConfig, MatcherConfig, TopKConfig
from lora_detr.matchers.hungarian import Problem, solve_problems
from lora_detr.processes.world import World
from lora_detr.recipe.loaders import eval_loader, read_splits
from lora_detr.structures import Assignment, Batch, PaddedTargets, Prediction

# Okabe and Ito: colours that colour-blind people tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")


def main(run: Path, output: Path, image_id: int | None = None) -> None:
    """Write the picture."""
    opened = open_run(run, "best")
    splits = read_splits(Path(str(opened.config.data.path)), opened.config.data)
    split = splits.val or splits.train
    loader = eval_loader(split, opened.deployment, World(0, 1, torch.device("cpu")), batch_size=1, workers=0)
    wanted = [batch for batch in loader if image_id in (None, batch.targets[0].image_id)]
    batch = max(wanted, key=lambda batch: len(batch.targets[0].labels)) if image_id is None else wanted[0]
    with torch.no_grad():
        layer = opened.detector(batch.images).layers[-1]
    found = layer.prediction
    prediction = Prediction(found.logits[None], found.boxes[None], boxes_refined([layer.reference]))
    targets = PaddedTargets.from_targets(batch.targets)
    torch.manual_seed(0)  # of topk's choice among its candidates

    figure, panels = plt.subplots(2, 4, figsize=(14, 7.6), layout="constrained")
    one_to_one = HungarianConfig().build()
    (pairs,) = solve_problems([Problem(one_to_one.cost(prediction, targets))], targets)
    draw(panels.flat[0], "one to one (primary path)", batch, targets, prediction.boxes[0, 0], pairs)
    for panel, config in zip(panels.flat[1:], models_of(MatcherConfig), strict=True):
        rule = config(k=6) if config is TopKConfig else config()
        pairs = rule.build()(prediction, targets)
        draw(panel, rule.describe(), batch, targets, prediction.boxes[0, 0], pairs)
    figure.savefig(output, dpi=110)


def draw(panel: Axes, title: str, batch: Batch, targets: PaddedTargets, boxes: Tensor, pairs: Assignment) -> None:
    """Draw one rule: objects filled, the boxes of their queries as lines of the same colour."""
    height, width = batch.images.pixels.shape[-2:]
    photo = batch.images.pixels[0].permute(1, 2, 0).float()
    panel.imshow(0.35 * photo / 255 + 0.65)
    counts = pairs.mask[0, 0].sum(-1).tolist()
    for target in range(targets.counts[0]):
        colour = COLOURS[target % len(COLOURS)]
        panel.add_patch(rectangle(targets.boxes[0, target], width, height, facecolor=colour, alpha=0.25))
        for query in pairs.query[0, 0, target][pairs.mask[0, 0, target]].tolist():
            panel.add_patch(rectangle(boxes[query], width, height, edgecolor=colour, fill=False, linewidth=1.6))
    without = sum(count == 0 for count in counts)
    panel.set_title(f"{title}\n{sum(counts)} positives, {without} of {len(counts)} objects without", fontsize=11)
    panel.set_axis_off()


def rectangle(box: Tensor, width: int, height: int, **style: object) -> Rectangle:
    """Return a box, cxcywh relative to the image, as a patch."""
    x, y, w, h = box.tolist()
    return Rectangle(((x - w / 2) * width, (y - h / 2) * height), w * width, h * height, **style)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
