"""Time the kernels of deformable attention against the reference, forward alone and with the backward pass.

    python benchmarks/attention.py --size tiny-encoder paper-encoder --threads 1

The reference is `grid_sample` in plain PyTorch. Every other kernel that is there must equal it first. Sizes: `tiny` are
those of four images of 256x256 at strides 16 to 64; `paper` those of an image of 480x640 at strides 8 to 64. Memory is
what autograd keeps for the backward pass, the inputs themselves left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.report import Row, give, parse
from lora_detr.experiments.cost.interleaved import Timing, interleaved
from lora_detr.ops.sampling_choice import COMPILED, PLAIN, Kernel, fault_of

HEADS, DEPTH, POINTS = 8, 32, 4
REFERENCE = "grid-sample"


@dataclass(frozen=True)
class Size:
    """How large a problem is.

    Attributes:
        batch: images.
        shapes: (height, width) of the levels.
        queries: of an image; None for as many as it has tokens, as in the encoder.
    """

    batch: int
    shapes: tuple[tuple[int, int], ...]
    queries: int | None

    @property
    def tokens(self) -> int:
        """S."""
        return sum(height * width for height, width in self.shapes)


TINY = ((16, 16), (8, 8), (4, 4))
PAPER = ((60, 80), (30, 40), (15, 20), (8, 10))
SIZES = {
    "tiny-encoder": Size(4, TINY, None),
    "tiny-decoder": Size(4, TINY, 100),
    "paper-encoder": Size(1, PAPER, None),
    "paper-decoder": Size(1, PAPER, 300),
}


@dataclass(frozen=True)
class Problem:
    """Leaves that want a gradient, and the gradient that comes back; points lie near their query, as in training."""

    shapes: tuple[tuple[int, int], ...]
    leaves: tuple[Tensor, Tensor, Tensor]
    gradient: Tensor

    @classmethod
    def draw(cls, size: Size, device: str) -> Problem:
        """Draw one."""
        generator = torch.Generator().manual_seed(0)
        queries, levels = size.queries or size.tokens, len(size.shapes)
        value = torch.randn(size.batch, size.tokens, HEADS, DEPTH, generator=generator)
        centres = torch.rand(size.batch, queries, 1, 1, 1, 2, generator=generator)
        spread = 0.05 * torch.randn(size.batch, queries, HEADS, levels, POINTS, 2, generator=generator)
        weights = torch.rand(size.batch, queries, HEADS, levels, POINTS, generator=generator)
        weights = weights / weights.sum((-1, -2), keepdim=True)
        gradient = torch.randn(size.batch, queries, HEADS * DEPTH, generator=generator)
        value, places, weights = (part.to(device).requires_grad_() for part in (value, centres + spread, weights))
        return cls(size.shapes, (value, places, weights), gradient.to(device))

    def forward(self, kernel: Kernel) -> Tensor:
        """Sample."""
        value, places, weights = self.leaves
        return kernel(value, self.shapes, places, weights)

    def without_gradient(self, kernel: Kernel) -> None:
        """Sample as inference does."""
        with torch.no_grad():
            self.forward(kernel)

    def with_gradient(self, kernel: Kernel) -> None:
        """Sample and go back."""
        torch.autograd.grad(self.forward(kernel), self.leaves, self.gradient)

    def kept_megabytes(self, kernel: Kernel) -> float:
        """Return what autograd keeps of a forward pass, each piece of memory once."""
        own = {leaf.untyped_storage().data_ptr() for leaf in self.leaves}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = self.forward(kernel)  # holds the graph while the pieces are counted
        del out
        return sum(kept.values()) / 1e6


def kernels(device: str) -> dict[str, Kernel]:
    """Return the kernels that are there, the reference first.

    Raises:
        SystemExit: one of them differs from the reference.
    """
    found: dict[str, Kernel] = {REFERENCE: PLAIN[REFERENCE], **PLAIN}
    for name, kernel in COMPILED.items():
        if device in kernel.devices and find_spec(kernel.module) is not None:
            found[name] = kernel.sample
    for name, sample in found.items():
        fault = fault_of(sample, device)
        if fault:
            raise SystemExit(f"{name} {fault}")
    return found


def rows(name: str, device: str, rounds: int) -> list[Row]:
    """Measure all kernels on a problem."""
    problem = Problem.draw(SIZES[name], device)
    there = kernels(device)

    def timed(run: Callable[[Kernel], None]) -> Sequence[Timing]:
        return interleaved([lambda kernel=kernel: run(kernel) for kernel in there.values()], rounds, device=device)

    forward, both = timed(problem.without_gradient), timed(problem.with_gradient)
    return [
        {
            "size": name,
            "kernel": kernel,
            "seconds_forward": one.seconds,
            "ratio_forward": one.ratio,
            "seconds_with_backward": other.seconds,
            "ratio_with_backward": other.ratio,
            "lowest": other.lowest,
            "highest": other.highest,
            "megabytes_kept": problem.kept_megabytes(sample),
        }
        for (kernel, sample), one, other in zip(there.items(), forward, both, strict=True)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parse(parser)
    give([row for name in given.size for row in rows(name, given.device, given.rounds)], given)


if __name__ == "__main__":
    main()
