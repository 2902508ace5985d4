"""What a run writes while it trains: one JSON line a logged step, one an epoch, one CSV row an evaluation."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_detr.atomic_files import reporting
from lora_detr.json_value import JSON
from lora_detr.structures import Batch


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Append one JSON line; a reader may see it half written for an instant, a file never keeps half of one.

    Raises:
        OutputError: the file cannot be written, or is a link.
    """
    _append(path, json.dumps(record, allow_nan=True) + "\n")


def _append(path: Path, text: str) -> None:
    """Append all of a text or nothing."""
    data = text.encode()
    with reporting(path):
        # A link would lead the lines into a file of somebody else; a pipe would be waited for.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            end = os.fstat(descriptor).st_size
            try:
                while data:  # a disk that gets full takes a part first
                    data = data[os.write(descriptor, data) :]
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


class RunningMean:
    """Means over an epoch of named values."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def to_json(self) -> dict[str, JSON]:
        """Return sums and count, for a checkpoint within an epoch."""
        return {"sums": dict[str, JSON](self.sums), "count": self.count}

    @classmethod
    def from_json(cls, value: object) -> RunningMean:
        """Read what ``to_json`` returned; anything else gives no means."""
        found = cls()
        if isinstance(value, dict) and isinstance(value.get("sums"), dict) and isinstance(value.get("count"), int):
            found.sums = {str(name): float(total) for name, total in value["sums"].items()}
            found.count = value["count"]
        return found

    def add(self, values: Mapping[str, float]) -> None:
        """Add one step's values."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means so far; empty before the first step."""
        return {name: total / self.count for name, total in self.sums.items()}


def pixel_counts(batches: Sequence[Batch]) -> dict[str, float]:
    """Return how many pixels the batches of a step have, and how many of them are padding, for a ``RunningMean``.

    Args:
        batches: on the host, so that no device is waited for.
    """
    images = [batch.images for batch in batches]
    return {"pixels": sum(one.padding.numel() for one in images), "padded": sum(one.count_padded() for one in images)}


def padded_share(means: Mapping[str, float]) -> float:
    """Return the share of pixels that are padding, in [0, 1); NaN where none were counted."""
    pixels = means.get("pixels", 0.0)
    return means.get("padded", 0.0) / pixels if pixels else float("nan")


# Names under which the plot scripts of the DETR family look for the primary path's last layer; those of the layers
# before it end in _0, _1 and so on.
DETR_NAMES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


def epoch_record(
    epoch: int,
    step: int,
    means: Mapping[str, float],
    last_layer: int,
    weights: Mapping[str, float],
    rate: float,
    parameters: int,
    metrics: Mapping[str, float] | None,
) -> dict[str, object]:
    """Build the line of an epoch, with the keys that DETR's plot scripts read.

    Means are those of this process, among them ``train_padding``, the share of pixels that were padding. As in logs of
    that family a term has its weight in the total, and stands without it under the same key with ``_unscaled``.

    Args:
        epoch: 0 at first.
        step: that the epoch ended at.
        means: of all terms before weighting, by name.
        last_layer: the decoder layer whose terms have no number.
        weights: of each kind of loss of the primary path.
        rate: of the first group of parameters.
        parameters: how many are trained.
        metrics: of the evaluation after it, if there was one.
    """
    record: dict[str, object] = {"epoch": epoch, "step": step, "train_lr": rate, "n_parameters": parameters}
    record["train_loss"] = means.get("loss", float("nan"))
    # A layer that a detector's own loss leaves out adds nothing.
    absent = 0.0 if any(name.startswith("primary/") for name in means) else float("nan")
    for layer in range(last_layer + 1):
        for kind, name in DETR_NAMES.items():
            key = f"train_{name}" if layer == last_layer else f"train_{name}_{layer}"
            term = means.get(f"primary/layer{layer}/{kind}", absent)
            record |= {key: weights[kind] * term, f"{key}_unscaled": term}
    record["train_padding"] = padded_share(means)
    if metrics is not None:
        record["test_coco_eval_bbox"] = list(metrics.values())
    return record


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Append a row to a CSV file, with the header first where the file is new or empty.

    A file that has a header keeps it: columns that it lacks are left out, as in a run that an older version began.

    Raises:
        OutputError: the file cannot be written, or is a link.
    """
    text = io.StringIO(newline="")
    header = _header(path)
    writer = csv.DictWriter(text, fieldnames=header or list(row), extrasaction="ignore")
    if not header:
        writer.writeheader()
    writer.writerow(row)
    _append(path, text.getvalue())


def _header(path: Path) -> list[str]:
    """Return the names of the columns of a CSV file; none if it is absent or empty."""
    with reporting(path):
        if not path.exists() or not path.stat().st_size:
            return []
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return next(csv.reader(file), [])
