"""Measure matching and criterion of a training step: tensor operations, copies to the host, and time.

    python benchmarks/criterion.py
    python benchmarks/criterion.py --preset relation-lora3 --sizes 2x8 --branches 3

Predictions are made up, as many and as large as the preset has them in training on images of 480x640 pixels; the losses
are the preset's own, and k of the branches that of ``loradetr train --aux N``. Operations are those that reach
PyTorch's dispatcher. ``host_copies`` are copies from device to host in the forward pass; ``waiting`` counts other
operations that would make the host wait for a GPU, such as ``item`` and ``nonzero``.

The loop version reads the same tensors and goes through layers, branches, images and pairs one after the other, with
the functions of ``tests/reference``. Its total is compared once. Those functions are written to be read, in Python
numbers and float64, so ``ratio`` (our time as a multiple of the loop's, both passes) says what stacks save against the
plainest loop, not against anybody's training code; operations and copies grow with the work in any loop. Both run in
turn, after the pass that is counted, which warms up. The defaults take about ten minutes, nearly all of it in the loop,
which ``--ours-only`` leaves out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.criterion_case import CLASSES, TOKENS, Case, synthetic_case
from benchmarks.criterion_loop import Loop
from benchmarks.operations import cost_of
from benchmarks.report import Row, give, parse
from lora_detr.errors import ConfigError
from lora_detr.experiments.cost.interleaved import interleaved, wait_for

SIZES = ((2, 8), (2, 20), (8, 8), (8, 20))
AGREEMENT = 1e-4
"""Largest relative difference of our total, in float32, from that of the loop, in float64."""

WARM_UP = 2
"""Passes of ours before the clock runs, beside the one that is counted."""


def row_of(case: Case, named: Row, rounds: int, device: str = "cpu", with_loop: bool = True) -> Row:
    """Count and time a case, and the loop version of it.

    Args:
        case: all of which is computed.
        named: what the row begins with.
        rounds: that are timed, at least one.
        device: of the case.
        with_loop: else what is said of the loop is None.

    Raises:
        RuntimeError: the totals differ, so that times must not be compared.
    """
    ours = cost_of(case.total, case.leaves)
    ways = [partial(case.total, case.priority)]
    for _ in range(WARM_UP):
        _seconds(ways[0], case.leaves, device)
    loop = None
    if with_loop:
        ways.insert(0, Loop(case).total)
        loop = cost_of(ways[0], case.leaves)
        expected, found = loop.total, ways[1]().item()
        if not math.isclose(found, expected, rel_tol=AGREEMENT):
            raise RuntimeError(f"our total is {found}, that of the loop {expected}")
    measured: list[list[tuple[float, float]]] = [[] for _ in ways]

    def timed(i: int) -> None:
        measured[i].append(_seconds(ways[i], case.leaves, device))

    timing = interleaved([partial(timed, i) for i in range(len(ways))], rounds, warm_up=0, device=device)[-1]
    seconds = [tuple(statistics.median(column) for column in zip(*turns, strict=True)) for turns in measured]
    ratios = [[a / b for a, b in zip(*turn, strict=True)] for turn in zip(measured[-1], measured[0], strict=True)]
    ratio = tuple(statistics.median(column) for column in zip(*ratios, strict=True))
    return {
        **named,
        "layers": case.config.model.decoder_layers,
        "operations": ours.forward,
        "operations_backward": ours.backward,
        "host_copies": ours.copies,
        "waiting": sum(ours.waiting.values()),
        "seconds_forward": seconds[-1][0],
        "seconds_backward": seconds[-1][1],
        "loop_operations": loop and loop.forward,
        "loop_operations_backward": loop and loop.backward,
        "loop_host_copies": loop and loop.host_copies,
        "loop_seconds_forward": seconds[0][0] if loop else None,
        "loop_seconds_backward": seconds[0][1] if loop else None,
        "ratio_forward": ratio[0] if loop else None,
        "ratio_backward": ratio[1] if loop else None,
        "ratio": timing.ratio if loop else None,
        "lowest": timing.lowest if loop else None,
        "highest": timing.highest if loop else None,
    }


def _seconds(total: Callable[[], Tensor], leaves: Sequence[Tensor], device: str) -> tuple[float, float]:
    """Return the seconds of a forward and of a backward pass."""
    start = time.perf_counter()
    value = total()
    wait_for(device)
    middle = time.perf_counter()
    torch.autograd.grad(value, leaves, allow_unused=True)
    wait_for(device)
    return middle - start, time.perf_counter() - middle


def size(text: str) -> tuple[int, int]:
    """Return images and objects of a text such as 2x8.

    Raises:
        ValueError: it is none.
    """
    images, objects = map(int, text.split("x"))
    if images < 1 or objects < 0:
        raise ValueError(text)
    return images, objects


def main() -> None:
    """Measure and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deformable-lora3", help="one with branches")
    parser.add_argument("--sizes", nargs="+", type=size, default=SIZES, metavar="BxT", help="images x objects")
    parser.add_argument("--branches", nargs="+", type=int, default=[1, 2, 3, 5], metavar="N")
    parser.add_argument("--queries", type=int, help="default: the preset's")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the encoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="leave the loop out")
    parser.add_argument("--device", default="cpu")
    given = parse(parser)
    rows = []
    for (images, objects), branches in itertools.product(given.sizes, given.branches):
        sizes = {"queries": given.queries, "classes": given.classes, "tokens": given.tokens}
        try:
            case = synthetic_case(given.preset, images, objects, branches, **sizes, device=given.device)
        except ConfigError as error:
            parser.error(f"{error.message}; {error.remedy}")
        named = {"preset": given.preset, "images": images, "objects": objects, "branches": branches}
        rows.append(row_of(case, named, given.rounds, given.device, with_loop=not given.ours_only))
    give(rows, given)


if __name__ == "__main__":
    main()
