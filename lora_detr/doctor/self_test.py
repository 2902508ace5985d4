"""Check without data that this machine trains, and that several processes on it find each other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lora_detr.config.load import load_config
from lora_detr.data.loader import collate
from lora_detr.doctor.checks import Check, CheckFailedError, attempt
from lora_detr.processes.world import World, visible_gpus
from lora_detr.recipe.run_config import RunConfig
from lora_detr.structures import Batch, Target
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
# Enough for the loss to fall well below its start; half a second in all.
STEPS = 5

# The fewest that can meet; and seconds for them to start, to find each other and to add up, most of it to import torch.
PROCESSES, PROCESSES_SECONDS = 2, 120


def computing_checks(device: torch.device, processes: int) -> Iterator[Check]:
    """Train a small model for some steps, then start processes; about ten seconds on a CPU.

    Args:
        device: where to compute.
        processes: how many must find each other; 1 leaves that out.
    """
    yield attempt("training", lambda: _training(device))
    if processes > 1:
        yield attempt("processes", lambda: several_processes(device, processes))


def process_count(device: torch.device, wanted: int | None) -> int:
    """Return how many processes must find each other: as many as are wanted, else a GPU each, or two on the CPU."""
    return wanted or (visible_gpus() if device.type == "cuda" else PROCESSES)


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
    return f"{STEPS} steps on {device}, loss {losses[0]:.2f} to {losses[-1]:.2f}, {seconds:.2f} s per step"


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
                "a firewall or a network device may be in the way; set one with GLOO_SOCKET_IFNAME=lo"
                if backend == "gloo"
                else "run it again with NCCL_DEBUG=INFO, which shows where it waits",
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
