"""Studies with made-up runs, for tests that need no training."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_detr.evaluation.coco_eval import METRICS
from lora_detr.experiments.tables.study import Run, Settings, Study
from lora_detr.experiments.tables.table import read_table

TABLE = """
title: "Mine: two rows"
source: made up
answers: [{name: primary}, {name: branch with NMS, branch: 0, nms: 0.7}]
rows:
  - name: base
    label: base
    options: {baseline: deformable}
    published: {AP: 40.0, parameters: 47.3}
  - name: three
    label: three branches
    options: {baseline: deformable, aux: 3}
    published: {AP: 42.5, "AP, branch with NMS": 43.0}
"""


def study_in(folder: Path, seeds: Sequence[int] = (0, 1), **settings: object) -> Study:
    """Return a study of two rows at the tiny scale."""
    path = folder / "mine.yaml"
    path.write_text(TABLE, encoding="utf-8")
    info = read_table(path)
    chosen = Settings("tiny", folder / "data", **settings)  # type: ignore[arg-type]
    return Study(info, chosen, tuple(info.table.at("tiny")), tuple(seeds), folder / "study")


def write_run(
    run: Run,
    precisions: Mapping[int, float],
    *,
    code: int = 0,
    seconds: float = 0.5,
    images: tuple[int, int] = (20, 10),
) -> None:
    """Write what a training leaves: AP in [0, 1] by step."""
    run.folder.mkdir(parents=True)
    (run.folder / "exit.json").write_text(json.dumps({"code": code}), encoding="utf-8")
    with (run.folder / "results.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", *METRICS])
        writer.writeheader()
        for step, value in precisions.items():
            writer.writerow({"epoch": 1, "step": step, **dict.fromkeys(METRICS, value), "APs": -1})
    lines = [
        json.dumps({"step": step, "epoch": 0, "seconds": seconds * factor}) for step, factor in ((1, 9), (2, 1), (3, 1))
    ]
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = {split: {"images": count, "categories": 3} for split, count in zip(("train", "val"), images, strict=True)}
    (run.folder / "data_report.json").write_text(json.dumps(report), encoding="utf-8")
