"""A step on an image with 10,000 objects, many more than queries: how long it takes, and how much memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_detr.runs import run
from lora_detr.structures import Target
from tests import small_runs

OBJECTS, QUERIES = 10_000, 300
SECONDS, BYTES = 30, 2e9
HYBRID = ("model.dac=true", "model.hybrid={num_queries: 300}", "loss.hybrid.repeats=6")


@contextmanager
def memory_limit(more: float) -> Iterator[None]:
    """Let every allocation fail that takes this process to ``more`` bytes above what it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(more), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def crowd(num_classes: int, image: Target) -> Target:
    """Return small objects all over the image."""
    draw = torch.Generator().manual_seed(0)
    centres = 0.05 + 0.9 * torch.rand(OBJECTS, 2, generator=draw)
    sizes = 0.005 + 0.05 * torch.rand(OBJECTS, 2, generator=draw)
    labels = torch.randint(0, num_classes, (OBJECTS,), generator=draw)
    return replace(image, boxes=torch.cat((centres, sizes), dim=1), labels=labels)


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("deformable-tiny-lora3", ()), ("deformable-tiny-lora3", HYBRID), ("relation-tiny", ())],
    ids=["branches", "hybrid and dac", "relation with denoising"],
)
def test_ten_thousand_objects_s03_n10(preset: str, changes: tuple[str, ...], shapes_tiny: Path) -> None:
    settings = small_runs.reduced(preset, shapes_tiny, f"model.num_queries={QUERIES}", *changes).loaded.config
    splits = small_runs.splits_of(shapes_tiny, settings)
    stepper = small_runs.stepper(settings, splits.categories.num_classes)
    batch = small_runs.batch_of(splits, settings, [0])
    batch = replace(batch, targets=(crowd(splits.categories.num_classes, batch.targets[0]),))
    start = time.perf_counter()
    with memory_limit(BYTES):
        result = stepper([batch], 0)
    assert time.perf_counter() - start < SECONDS
    assert not result.skipped
    assert result.loss > 0
    # Of 10,000 objects only 300 have a query; a pair's distance is at most 4, and the sum is divided by all objects.
    distances = [term.value for term in result.terms if (term.key.source, term.key.kind) == ("primary", "l1")]
    assert distances
    assert all(0 < value <= 4 * QUERIES / OBJECTS for value in distances)


def test_the_limit_itself() -> None:
    with memory_limit(5e8), pytest.raises(RuntimeError, match="allocate"):
        torch.zeros(500_000_000)
    assert torch.zeros(300_000_000).numel() == 300_000_000


def test_images_with_more_objects_than_queries_are_counted_n10(shapes_tiny: Path, tmp_path: Path) -> None:
    lines = small_runs.Lines()
    resolved = small_runs.request(shapes_tiny, "model.num_queries=6", "branches=[]", "train.max_steps=1")
    run.start(resolved, tmp_path / "run", None, True, lines)
    warning, _ = [line for line in lines.lines if line.startswith("warning ")]  # the other is of the validation split
    counts = small_runs.splits_of(shapes_tiny, small_runs.config()).train.records.object_counts.tolist()
    crowded = [count for count in counts if count > 6]
    assert f" {len(crowded)} images have more objects than the 6 queries (at most {max(crowded)}): " in warning
    assert f" {sum(crowded) - 6 * len(crowded)} objects of an epoch go unmatched" in warning
