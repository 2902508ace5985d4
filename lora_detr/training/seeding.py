"""Seed, save and restore the random generators of a process: Python's, numpy's global one, torch's on CPU and GPU.

``seed_everything`` starts a run or a process; ``rng_state`` and ``restore_own_state`` carry all generators through a
checkpoint, as JSON rather than pickle; ``torch_state`` notes before each step what that step draws from, so that
``doctor --replay`` can run it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lora_detr.checkpoints.checkpoint import run_of
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.json_value import JSON
from lora_detr.processes.world import World


def seed_everything(seed: int, *streams: int) -> None:
    """Seed all generators for one process.

    Args:
        seed: of the run, at least 0.
        streams: rank of the process, so that dropout differs between ranks; and whatever else tells draws apart.
    """
    # SeedSequence mixes, so that (seed 0, rank 1) and (seed 1, rank 0) have nothing in common.
    for_python, for_numpy, for_torch = np.random.SeedSequence([seed, *(streams or (0,))]).generate_state(3)
    random.seed(int(for_python))
    np.random.seed(int(for_numpy))  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(int(for_torch))


def rng_state() -> dict[str, JSON]:
    """Return the state of all generators of this process; torch's states are hexadecimal text."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(algorithm), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": _to_text(torch.get_rng_state()),
        "cuda": [_to_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_own_state(
    states: object, world: World, source: Path, other_processes: bool, fresh: tuple[int, int]
) -> None:
    """Restore the state of this process among those that a checkpoint has, by rank.

    Args:
        states: of all processes.
        world: rank and number of processes.
        source: the checkpoint.
        other_processes: states of another number of processes are no fault; every process is then seeded again.
        fresh: seed of the run and step, to seed from in that case.

    Raises:
        CheckpointError: there are no states, or they are malformed.
        ConfigError: C08, they are of another number of processes.
    """
    if not isinstance(states, list) or not states:
        raise CheckpointError(f"{source}: holds no state of the random generators", "resume from another checkpoint")
    if len(states) == world.size:
        restore_rng_state(states[world.rank])
    elif other_processes:
        seed_everything(*fresh, world.rank)
    else:
        raise ConfigError(
            f"--resume {run_of(source) or source}: the run was on {len(states)} processes, this is on {world.size}",
            "give --gpus or --nproc as before, or --override processes: batches, rates and random draws then change",
            code="C08",
        )


def torch_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators that a step on a device draws from; quick, and without waiting for it."""
    state = {"cpu": torch.get_rng_state()}
    return state if device.type == "cpu" else {**state, device.type: torch.cuda.get_rng_state(device)}


def torch_state_to_json(state: Mapping[str, Tensor]) -> dict[str, JSON]:
    """Return what ``torch_state`` returned as hexadecimal text."""
    return {kind: _to_text(value) for kind, value in state.items()}


def restore_torch_state(state: Mapping[str, str], device: torch.device) -> None:
    """Restore what ``torch_state_to_json`` returned, as far as it is of this device.

    Raises:
        KeyError, RuntimeError, TypeError, ValueError: the state is not of this form.
    """
    torch.set_rng_state(_from_text(state["cpu"]))
    if device.type != "cpu" and device.type in state:
        torch.cuda.set_rng_state(_from_text(state[device.type]), device)


def restore_rng_state(state: Any) -> None:
    """Restore what ``rng_state`` returned.

    States of CUDA devices are restored for the devices there are: a run that goes on with fewer of them is not
    bitwise the same anyway.

    Raises:
        CheckpointError: the state is not of this form; some generators may have been restored already.
    """
    try:
        python, numpy = state["python"], state["numpy"]
        random.setstate((python[0], tuple(python[1]), python[2]))
        np.random.set_state((numpy[0], np.array(numpy[1], dtype=np.uint32), *numpy[2:]))  # noqa: NPY002
        torch.set_rng_state(_from_text(state["torch"]))
        for i in range(min(len(state["cuda"]), torch.cuda.device_count())):
            torch.cuda.set_rng_state(_from_text(state["cuda"][i]), i)
    except (IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        message = f"the state of the random generators cannot be restored: {error}"
        raise CheckpointError(message, "resume from another checkpoint") from error


@contextmanager
def keeping_rng_state() -> Iterator[None]:
    """Leave all generators afterwards as they were, whatever is drawn meanwhile."""
    before = rng_state()
    try:
        yield
    finally:
        restore_rng_state(before)


def _to_text(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _from_text(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
