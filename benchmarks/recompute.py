"""Measure what `--recompute` saves and what it costs, and print a table.

    python benchmarks/recompute.py --preset deformable-lora3 --size 320 --batch 2

Memory is what the first step of a process of its own takes above what it held before, gradients and moments included.
Step times are measured in one process, all variants in turn on the same images, and given as ratios to the first.
Images and weights are random: neither changes what a step costs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from benchmarks.report import Row, give, parse
from benchmarks.steps import Inputs, Subject, add_inputs, inputs_of, step_bytes
from lora_detr.experiments.cost.interleaved import interleaved
from lora_detr.experiments.cost.memory import megabytes_alone
from lora_detr.recipe.run_config import RecomputedPart
from lora_detr.training.recompute import recompute

VARIANTS: tuple[tuple[RecomputedPart, ...], ...] = (
    (),
    ("backbone",),
    ("encoder",),
    ("decoder",),
    ("backbone", "encoder", "decoder"),
)


def subject_of(system: str, inputs: Inputs, parts: Sequence[RecomputedPart]) -> Subject:
    """Return a system in training mode that computes parts of itself again in the backward pass."""
    subject = Subject(system, inputs)
    recompute(subject.model.detector, parts)
    subject.model.train()
    return subject


def rows(system: str, inputs: Inputs, rounds: int) -> list[Row]:
    """Measure a step of each variant."""
    subjects = [subject_of(system, inputs, parts) for parts in VARIANTS]
    timings = interleaved([subject.step for subject in subjects], rounds, device=inputs.device)
    found: list[Row] = []
    for parts, timing in zip(VARIANTS, timings, strict=True):
        alone = [*inputs.options(), "--preset", system, "--alone", ",".join(parts)]
        found.append(
            {
                "recomputed": ", ".join(parts) or "nothing",
                "memory_mb": megabytes_alone(__file__, alone),
                "seconds": timing.seconds,
                "ratio": timing.ratio,
                "lowest": timing.lowest,
                "highest": timing.highest,
            }
        )
    return found


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deformable-lora3", metavar="SYSTEM")
    add_inputs(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parse(parser)
    inputs = inputs_of(given, (320, 320), 2)
    if given.alone is not None:
        parts = next(parts for parts in VARIANTS if ",".join(parts) == given.alone)
        print(json.dumps(step_bytes(subject_of(given.preset, inputs, parts), inputs)))
        return
    del given.alone
    give(rows(given.preset, inputs, given.rounds), given)


if __name__ == "__main__":
    main()
