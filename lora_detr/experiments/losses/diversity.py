"""Diversity of the branches of several runs, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from lora_detr.experiments.markdown import markdown_table
from lora_detr.records.diversity import MEASURES, DiversityLog, late_mean


def diversity_as_csv(logs: Sequence[DiversityLog]) -> str:
    """Return all curves, a line for each value."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "run", "step", "measure", "of", "value"])
    counts: dict[str, int] = {}
    for log in logs:
        number = counts[log.label] = counts.get(log.label, -1) + 1
        for measure, curves in log.curves.items():
            for name, values in curves.items():
                for step, value in zip(log.steps, values, strict=True):
                    if math.isfinite(value):
                        writer.writerow([log.label, number, int(step), measure, name, f"{value:.6g}"])
    return text.getvalue()


def diversity_as_markdown(logs: Sequence[DiversityLog]) -> str:
    """Return means over the last half of each run, in which matching has settled, averaged over runs of a label."""
    rows = []
    for label in dict.fromkeys(log.label for log in logs):
        own = [log for log in logs if log.label == label]
        names = dict.fromkeys(name for log in own for curves in log.curves.values() for name in curves)
        for name in names:
            cells = []
            for measure in MEASURES:
                values = [value for log in own if math.isfinite(value := late_mean(log, measure, name))]
                cells.append(f"{np.mean(values):.3f}" if values else "-")
            rows.append([label, name.replace("|", " and "), *cells])
    return "\n".join(markdown_table(["runs", "of", *MEASURES.values()], rows, words=2)) + "\n"
