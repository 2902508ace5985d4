"""Count what inference and a training step compute and move, and say how fast known accelerators can be at best.

    python benchmarks/bounds.py
    python benchmarks/bounds.py --preset deformable-lora3 --size 800 1216 --batch 2 --devices 64 --json

Counts are exact but for what `benchmarks/workload.py` says, and nothing is computed for them: the detector runs on
tensors without values, the criterion on made-up values on the CPU. A multiply-add counts as two floating-point
operations; published GFLOPs of detectors are mostly multiply-adds, half of ours. Sampling is by `grid_sample`, as on a
GPU without further packages, or by a compiled kernel (`--sampling compiled`), which stores nothing in between;
self-attention is without a fused kernel.

Times are bounds from published peaks, not measurements:

- `bound_ms`: the larger of all floating-point operations at the peak, and of all bytes at the bandwidth;
- `one_by_one_ms`: the same, taken for each operation and added up, which is closer where one runs after the other;
- `launch_ms`: operations times `--launch`, an assumed time that the host takes for one. Where it is more than the
  others, the device waits for the host;
- `all_reduce_ms`: gradients averaged in a ring of `--devices`, each of which sends 2 (n - 1) / n times their bytes; up
  to eight over NVLink, more over the network of their machines. It can hide behind the backward pass.

In bf16 half of the bytes of float32 are taken, and no time for casts, so no step is faster; parameters, gradients and
moments stay in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.report import Row, Value, give, parse
from benchmarks.steps import Inputs, classes_of, config_of, infer, mapped
from benchmarks.workload import Work, Workload, bytes_of, compiled_sampling, count
from lora_detr.ops import deform_attn
from lora_detr.ops.sampling import grid_sampling
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import BranchOutput, DetectorOutput, PaddedTargets
from lora_detr.training.seeding import seed_everything

INFERENCE, STEP = "inference", "training step"
PRESETS = ("deformable", "deformable-lora3", "deformable-pp-lora3", "relation-lora3")
OBJECTS = 7
"""Of an image of COCO, on average."""
TERA, GIGA, MEGA, KILO = 1e12, 1e9, 1e6, 1e3
IN_A_MACHINE = 8
"""Devices that NVLink joins."""


@dataclass(frozen=True)
class Accelerator:
    """Peaks that the maker publishes.

    Attributes:
        flops: a second, by precision, of dense matrices.
        bandwidth: bytes a second from and to its memory.
        link: bytes a second to the others of its machine; half of what is published for both directions.
        network: bytes a second that a machine of eight sends to others, by an adapter for each device.
    """

    flops: dict[str, float]
    bandwidth: float
    link: float
    network: float


# Data sheets of NVIDIA: A100 80GB SXM in a DGX A100 (adapters of 200 Gbit/s), H100 SXM in a DGX H100 (400 Gbit/s).
ACCELERATORS = {
    "A100": Accelerator(
        {"float32": 19.5 * TERA, "tf32": 156 * TERA, "bf16": 312 * TERA}, 2.039 * TERA, 300 * GIGA, 200 * GIGA
    ),
    "H100": Accelerator(
        {"float32": 67 * TERA, "tf32": 494 * TERA, "bf16": 989 * TERA}, 3.35 * TERA, 450 * GIGA, 400 * GIGA
    ),
}
PRECISIONS = ("float32", "tf32", "bf16")
SAMPLING = {"grid-sample": grid_sampling, "compiled": compiled_sampling}


@dataclass(frozen=True)
class Counted:
    """What does not depend on an accelerator.

    Attributes:
        what: ``INFERENCE`` or ``STEP``.
        batch: images.
        workload: operations.
        parameters: bytes; of inference those of the detector alone, its training-only parts included.
        gradients: bytes of what is trained; 0 in inference.
        copied: bytes of images and of their padding, from host to device.
    """

    what: str
    batch: int
    workload: Workload
    parameters: int
    gradients: int
    copied: int


@dataclass(frozen=True)
class Bound:
    """Seconds that something takes at least.

    Attributes:
        compute: all floating-point operations at the peak.
        memory: all bytes at the bandwidth.
        one_by_one: the larger of the two for each operation, added up.
    """

    compute: float
    memory: float
    one_by_one: float

    @property
    def total(self) -> float:
        """The larger of ``compute`` and ``memory``."""
        return max(self.compute, self.memory)


def bound(workload: Workload, accelerator: Accelerator, precision: str) -> Bound:
    """Return the least time of a workload that was counted in float32."""
    flops, bandwidth = accelerator.flops[precision], accelerator.bandwidth * (2 if precision == "bf16" else 1)
    each = sum(max(work.flops / flops, work.moved / bandwidth) for work in workload.operations)
    return Bound(workload.flops / flops, workload.moved / bandwidth, each)


def all_reduced(gradients: int, devices: int) -> float:
    """Return the bytes that each of so many devices, at least one, sends to average gradients in a ring."""
    return 2 * (devices - 1) / devices * gradients


def counted(system: str, inputs: Inputs, sampling: str = "grid-sample") -> list[Counted]:
    """Count inference and a training step of a preset, without a device.

    Args:
        system: preset and options.
        inputs: sizes; the device is not used.
        sampling: kernel of deformable attention, one of ``SAMPLING``.

    Returns:
        One for each, inference first.

    Raises:
        ConfigError: the preset is unknown, or an option is wrong.
    """
    with patch.object(deform_attn, "kernel_for", lambda *_: SAMPLING[sampling]):
        return _counted(config_of(system), inputs)


def _counted(config: RunConfig, inputs: Inputs) -> list[Counted]:
    classes = classes_of(config)
    seed_everything(0)
    host = inputs.draw(classes)
    host = replace(host, images=replace(host.images, pixels=host.images.pixels.to(torch.uint8)))
    nowhere = torch.device("meta")
    model, batch = config.build_model(classes, load_weights=False).to(nowhere), host.to(nowhere)
    copied = bytes_of((batch.images.pixels, batch.images.padding))

    model.eval()
    inference = count(lambda: infer(model.detector, batch.images))
    model.train()
    published: list[tuple[DetectorOutput, BranchOutput | None]] = []
    forward = count(lambda: published.append(model(batch.images, batch.targets)))
    output, branches = published[0]

    criterion = config.build_criterion()
    answers = mapped((output, branches), _with_values)
    normaliser = config.loss.normalise(float(inputs.batch * inputs.objects), 1)

    def supervise() -> None:
        criterion(*answers, PaddedTargets.from_targets(host.targets), normaliser).total.backward()

    supervision = count(supervise)
    # What the criterion gave a gradient is where the backward pass of the model begins.
    pairs = [pair for pair in zip(_tensors((output, branches)), _tensors(answers), strict=True) if pair[0].grad_fn]
    ends = [end for end, answer in pairs if answer.grad is not None]
    starts = [torch.empty_like(end) for end in ends]
    backward = count(lambda: torch.autograd.backward(ends, starts))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = bytes_of(trained)
    step = forward + supervision + backward + _update(gradients)
    return [
        Counted(INFERENCE, inputs.batch, inference, bytes_of(model.detector.parameters()), 0, copied),
        Counted(STEP, inputs.batch, step, bytes_of(model.parameters()), gradients, copied),
    ]


def _update(gradients: int) -> Workload:
    """Return clipping and AdamW, each a fused operation over all tensors.

    The norm reads gradients; clipping reads and writes them; AdamW reads them, and reads and writes weights and two
    moments.
    """
    return Workload((Work(0, gradients), Work(0, 2 * gradients), Work(0, 7 * gradients)))


def _with_values(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape on the CPU that a criterion accepts: in (0, 1), first indices, no mask."""
    if not tensor.is_floating_point():
        return torch.full(tensor.shape, tensor.dtype == torch.bool, dtype=tensor.dtype)
    return (0.1 + 0.8 * torch.rand(tensor.shape)).requires_grad_(tensor.requires_grad)


def _tensors(value: Any) -> list[Tensor]:
    """Return all tensors in data, always in the same order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, note)
    return found


def row(
    system: str, found: Counted, name: str, precision: str, launch: float, devices: int, network: float | None
) -> Row:
    """Return what is known of inference or a step on an accelerator.

    Args:
        system: preset and options.
        found: its counts.
        name: of the accelerator.
        precision: one of ``PRECISIONS``.
        launch: seconds of the host for an operation.
        devices: that train together.
        network: bytes a second that a machine sends; None for the accelerator's.
    """
    accelerator, workload = ACCELERATORS[name], found.workload
    least = bound(workload, accelerator, precision)
    launching = launch * len(workload.operations)
    sent = all_reduced(found.gradients, devices)
    outside = min(accelerator.link, accelerator.network if network is None else network)
    averaging = sent / (accelerator.link if devices <= IN_A_MACHINE else outside)
    counts: dict[str, Value] = {
        "gflops": workload.flops / GIGA,
        "operations": len(workload.operations),
        "moved_gb": workload.moved / GIGA,
        "parameters_mb": found.parameters / MEGA,
        "gradients_mb": found.gradients / MEGA,
        "moments_mb": 2 * found.gradients / MEGA,
        "images_mb": found.copied / MEGA,
        "all_reduce_mb": sent / MEGA,
    }
    times: dict[str, Value] = {
        "compute_ms": KILO * least.compute,
        "memory_ms": KILO * least.memory,
        "bound_ms": KILO * least.total,
        "one_by_one_ms": KILO * least.one_by_one,
        "launch_ms": KILO * launching,
        "launch_to_one_by_one": launching / least.one_by_one,
        "all_reduce_ms": KILO * averaging,
        "images_a_second_at_most": found.batch / max(least.total, averaging),
    }
    return {"preset": system, "what": found.what, **counts, "accelerator": name, "precision": precision, **times}


def rows(
    systems: Sequence[str],
    inputs: Inputs,
    sampling: str,
    accelerators: Sequence[str],
    precisions: Sequence[str],
    launch: float,
    devices: int,
    network: float | None,
) -> list[Row]:
    """Count each system once, and return a row for each accelerator and precision; see ``counted`` and ``row``."""
    return [
        row(system, found, name, precision, launch, devices, network)
        for system in systems
        for found in counted(system, inputs, sampling)
        for name, precision in product(accelerators, precisions)
    ]


def main() -> None:
    """Count and give the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", metavar="SYSTEM", help="repeatable; default: four of the paper's")
    parser.add_argument("--size", type=int, nargs="+", default=[800, 1216], metavar="PIXELS", help="height and width")
    parser.add_argument("--batch", type=int, default=2, help="images of a device")
    parser.add_argument("--objects", type=int, default=OBJECTS, help="in each image")
    parser.add_argument("--sampling", choices=SAMPLING, default="grid-sample")
    parser.add_argument("--accelerator", choices=ACCELERATORS, nargs="+", default=[*ACCELERATORS])
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=[*PRECISIONS])
    parser.add_argument("--launch", type=float, default=5.0, help="microseconds of the host for an operation (5)")
    parser.add_argument("--devices", type=int, default=IN_A_MACHINE, help="that train together (8)")
    parser.add_argument("--network", type=float, help="GB/s that a machine of eight sends (A100 200, H100 400)")
    given = parse(parser)
    given.preset = given.preset or [*PRESETS]
    inputs = Inputs((given.size[0], given.size[-1]), given.batch, given.objects)
    network = None if given.network is None else given.network * GIGA
    launch = given.launch / MEGA
    kinds = (given.sampling, given.accelerator, given.precision)
    give(rows(given.preset, inputs, *kinds, launch, given.devices, network), given)


if __name__ == "__main__":
    main()
