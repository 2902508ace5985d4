"""Compute on this machine what can be told right or wrong without data: sampling, matching, images, training."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lora_detr.config.load import load_config
from lora_detr.data.images import decode_file
from lora_detr.data.loader import collate
from lora_detr.doctor.checks import Check, CheckFailedError, attempt
from lora_detr.matchers.hungarian import solve_together
from lora_detr.ops.deform_attn import deformable_sampling
from lora_detr.processes.world import World, visible_gpus
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch, PaddedTargets, Target
from lora_detr.training.optim import build_optimizer
from lora_detr.training.seeding import seed_everything
from lora_detr.training.step import Stepper

PRESET = "deformable-tiny-lora3"
# The preset at a size that takes a tenth of a second a step; nothing random in it beside the first weights.
SMALL = (
    "model.backbone={kind: timm, name: test_efficientnet, strides: [16, 32], weights: none}",
    "model.num_queries=20",
    "model.hidden_dim=32",
    "model.heads=4",
    "model.ffn_dim=64",
    "model.encoder_layers=1",
    "model.decoder_layers=2",
    "model.points=2",
    "model.dropout=0.0",
    *(f"branches.{i}.matcher.positive_fraction=null" for i in range(3)),
    "train.optimizer.lr=1e-3",
)
STEPS = 5

# Values of sampling are of the order of 1.
SAMPLING_TOLERANCE = 1e-4
# Grey levels that JPEG may change on average in a smooth picture; a wrong order of colours changes forty.
JPEG_TOLERANCE = 6.0
# Seconds for processes to start, to find each other and to add up; importing torch takes most of it.
PROCESSES, PROCESSES_SECONDS = 2, 120


def computing_checks(device: torch.device, processes: int) -> Iterator[Check]:
    """Compute, and compare with what must come out; about ten seconds on a CPU.

    Args:
        device: where to compute.
        processes: how many must find each other; 1 leaves that out.
    """
    yield attempt("sampling", lambda: _sampling(device))
    yield attempt("matching", _matching)
    yield attempt("images", _images)
    yield attempt("training", lambda: _training(device))
    if processes > 1:
        yield attempt("processes", lambda: several_processes(device, processes))


def process_count(device: torch.device, wanted: int | None) -> int:
    """Return how many processes must find each other: as many as are wanted, else a GPU each, or two on the CPU."""
    return wanted or (visible_gpus() if device.type == "cuda" else PROCESSES)


def _sampling(device: torch.device) -> str:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (2, 2))
    value = torch.randn(1, 16, 2, 3, generator=generator)
    locations = torch.rand(1, 4, 2, 2, 2, 2, generator=generator) * 1.4 - 0.2  # some lie outside
    weights = torch.rand(1, 4, 2, 2, 2, generator=generator)
    expected = _sampled_one_by_one(value.numpy(), shapes, locations.numpy(), weights.numpy())
    found = deformable_sampling(value.to(device), shapes, locations.to(device), weights.to(device)).cpu().numpy()
    difference = float(np.abs(found - expected).max())
    if not difference <= SAMPLING_TOLERANCE:
        raise CheckFailedError(
            f"deformable attention on {device} differs from a plain loop by {difference:.1e}",
            "install another build of torch; results of this one are wrong",
        )
    return f"deformable attention on {device} equals a plain loop (largest difference {difference:.0e})"


def _sampled_one_by_one(
    value: NDArray[np.float32],
    shapes: tuple[tuple[int, int], ...],
    locations: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return what ``deformable_sampling`` must give for one image, without any operation of torch."""
    _, queries, heads, levels, points = weights.shape
    result = np.zeros((1, queries, heads, value.shape[-1]))
    starts = np.cumsum([0, *(height * width for height, width in shapes)])
    for query, head, level, point in itertools.product(*map(range, (queries, heads, levels, points))):
        height, width = shapes[level]
        plane = value[0, starts[level] : starts[level + 1], head].reshape(height, width, -1)
        x, y = locations[0, query, head, level, point]
        column, row = float(x) * width - 0.5, float(y) * height - 0.5
        for i, j in itertools.product(*((math.floor(at), math.floor(at) + 1) for at in (row, column))):
            if 0 <= i < height and 0 <= j < width:
                share = (1 - abs(row - i)) * (1 - abs(column - j))
                result[0, query, head] += weights[0, query, head, level, point] * share * plane[i, j]
    return result.reshape(1, queries, -1)


def _matching() -> str:
    """Compare the solver with all 840 ways to give four targets a query of seven each."""
    cost = torch.rand(1, 1, 4, 7, generator=torch.Generator().manual_seed(0))
    boxes = torch.full((4, 4), 0.5)
    targets = PaddedTargets.from_targets([Target(boxes, torch.zeros(4, dtype=torch.int64), 0, (1, 1))])
    found = -float(solve_together([cost], targets)[0].score.sum())
    table = cost[0, 0].tolist()
    best = min(sum(table[row][column] for row, column in enumerate(way)) for way in itertools.permutations(range(7), 4))
    if not math.isclose(found, best, rel_tol=1e-5):
        raise CheckFailedError(f"the solver found cost {found:.6f}, the least is {best:.6f}", "reinstall scipy")
    return "the Hungarian solver finds the least cost of 840 ways"


def _images() -> str:
    rows, columns = np.mgrid[0:48, 0:64]
    picture = np.stack([4 * columns % 256, 5 * rows % 256, 255 - 2 * columns], axis=-1).astype(np.uint8)
    picture[:, 62:] = picture[:, 61:62]
    with tempfile.TemporaryDirectory() as folder:
        for name, tolerance in (("picture.png", 0.0), ("picture.jpg", JPEG_TOLERANCE)):
            path = Path(folder) / name
            Image.fromarray(picture).save(path, quality=95, subsampling=0)
            read = decode_file(path).permute(1, 2, 0).numpy()
            difference = float(np.abs(read.astype(np.int64) - picture).mean())
            if difference > tolerance:
                raise CheckFailedError(
                    f"{name}: pixels that were written come back changed by {difference:.1f} of 255 on average",
                    "reinstall Pillow",
                )
    return "PNG and JPEG are written and read"


def _training(device: torch.device) -> str:
    """Train a small model on four generated images and expect that it learns them."""
    config = load_config(RunConfig, preset=PRESET, overrides=SMALL).config
    world = World(0, 1, device)
    seed_everything(0)
    model = config.build_model(3, load_weights=False).to(device).train()
    stepper = Stepper(model, config.build_criterion(), build_optimizer(model, config.train.optimizer), config, world)
    batch = _generated_batch()
    started = time.perf_counter()
    losses = [stepper([batch], step).loss for step in range(STEPS)]
    seconds = (time.perf_counter() - started) / STEPS
    if not losses[-1] < losses[0]:
        raise CheckFailedError(
            f"the loss of a small model went from {losses[0]:.2f} to {losses[-1]:.2f} in {STEPS} steps on {device}",
            "install another build of torch; this one trains wrongly",
        )
    return f"{STEPS} steps on {device}, loss {losses[0]:.2f} to {losses[-1]:.2f}, {seconds:.2f} s a step"


def _generated_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = [
        Target(torch.rand(count, 4, generator=generator) * 0.4 + 0.2, torch.arange(count) % 3, image, (96, 96))
        for image, count in enumerate((3, 0, 1, 2))
    ]
    return collate([(torch.randn(3, 96, 96, generator=generator), target) for target in targets])


def several_processes(device: torch.device, count: int, seconds: float = PROCESSES_SECONDS) -> str:
    """Start processes that find each other as those of a run do, and add up a tensor.

    Args:
        device: each computes on; of several GPUs each takes one.
        count: how many, at least 2.
        seconds: until all must have ended; then they are killed.

    Raises:
        CheckFailedError: one failed or did not end; says the last line that it wrote.
    """
    backend = "NCCL" if device.type == "cuda" else "gloo"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    # The package may be run from a checkout that only this process has on its path.
    source = str(Path(__file__).resolve().parents[2])
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "lora_detr.doctor.rank_trial", device.type, str(seconds)]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            for rank in range(count)
        ]
        try:
            codes = [rank.wait(timeout=max(0.1, started + seconds - time.monotonic())) for rank in ranks]
        except subprocess.TimeoutExpired:
            raise CheckFailedError(
                f"{count} processes did not find each other over {backend} within {seconds:.0f} s",
                "a firewall or a network device may be in the way; name one with GLOO_SOCKET_IFNAME=lo"
                if backend == "gloo"
                else "run it again with NCCL_DEBUG=INFO, which says where it waits",
            ) from None
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        said.seek(0)
        lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    if any(codes):
        reason = lines[-1] if lines else "no message"
        raise CheckFailedError(
            f"{count} processes over {backend} ended with codes {json.dumps(codes)}: {reason}",
            "run it again with TORCH_DISTRIBUTED_DEBUG=DETAIL; --nproc 1 leaves this check out",
        )
    return f"{count} processes added up over {backend} ({time.monotonic() - started:.0f} s, most of it to start)"
