"""The two processes of ``test_two_ranks.py``.

They go through all cases in one group, since starting takes longer than a step: a case that left them out of step with
each other would fail every later one. Each writes what it saw of every case.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lora_detr.errors import NumericalError
from lora_detr.ops.host import HostCopies
from lora_detr.processes.world import World
from lora_detr.structures import Batch
from tests import small_runs
from tests.commands import free_port
from tests.unit.training.one_rank import SMALL, prepared

SIZE = 2
BRANCH, COSTS = "branches.members.1.layers.1.b2", "detector.heads.classes.1.bias"


@dataclass(frozen=True)
class Case:
    """One step of two micro-batches of one image on each process.

    Attributes:
        parameter: becomes NaN; None for a step in order.
        ranks: on which processes.
        batch: before which micro-batch.
        system: name in ``one_rank.SYSTEMS``, or ``SMALL``.
        empty: processes whose images have no objects.
    """

    parameter: str | None = None
    ranks: tuple[int, ...] = ()
    batch: int = 0
    system: str = SMALL
    empty: tuple[int, ...] = ()


CASES = {
    "in order": Case(),
    "a term": Case(BRANCH, (1,)),
    "a term of the second batch": Case(BRANCH, (1,), batch=1),
    "a cost": Case(COSTS, (1,)),
    "a cost of the second batch": Case(COSTS, (0,), batch=1),
    "costs everywhere": Case(COSTS, (0, 1)),
    "a term, with no object there": Case(BRANCH, (1,), empty=(1,)),
    "a cost with query groups": Case(COSTS, (1,), system="hybrid and dac"),
    "a cost with denoising": Case("detector.heads.classes.0.bias", (0,), 1, "denoising without noise"),
    "in order without objects there": Case(empty=(1,)),
    "in order with denoising, without objects there": Case(system="denoising without noise", empty=(0,)),
}


def start(data: Path, out: Path) -> list[BaseProcess]:
    """Start both processes as forks of this one, which has imported all that they need."""
    for case in CASES.values():
        prepared(case.system, data)
    port = free_port()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run_rank, args=(rank, port, data, out), daemon=True) for rank in range(SIZE)]
    for process in processes:
        process.start()
    return [*processes]


def run_rank(rank: int, port: int, data: Path, out: Path) -> None:
    """Write what one process sees of all cases."""
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    numbers = {"WORLD_SIZE": SIZE, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in numbers.items()}})
    world = World.from_environment("cpu", timeout=30)
    found = {name: step(case, data, world) for name, case in CASES.items()}
    world.close()
    (out / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def step(case: Case, data: Path, world: World) -> dict[str, Any]:
    """Return how a step ended on this process, what it cost, and what it left."""
    settings, splits = prepared(case.system, data)
    stepper = small_runs.stepper(settings, splits.categories.num_classes, world)
    model: nn.Module = stepper.model.module  # type: ignore[assignment]
    filled = small_runs.with_objects(splits)[SIZE * world.rank : SIZE * world.rank + 2]
    batches = [small_runs.batch_of(splits, settings, [image]) for image in filled]
    if world.rank in case.empty:
        batches = [without_objects(batch) for batch in batches]
    if case.parameter is not None and world.rank in case.ranks:
        stepper.model.register_forward_pre_hook(spoils(model.get_parameter(case.parameter), case.batch))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    copies, error, loss = HostCopies.count, None, None
    with counted() as calls:
        try:
            loss = stepper(batches, 5).loss
        except NumericalError as caught:
            error = caught
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    return {
        "images": [batch.targets[0].image_id for batch in batches],
        "loss": loss,
        "code": None if error is None else error.code,
        "message": None if error is None else error.message,
        "seen": None if error is None else error.seen.to_json(),  # type: ignore[attr-defined]
        "copies": HostCopies.count - copies,
        "calls": dict(calls),
        "changed": changed,
        "moments": len(stepper.optimizer.state),
        "without gradient": [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None],
    }


def without_objects(batch: Batch) -> Batch:
    """Return the same images, without their targets."""
    targets = tuple(replace(one, boxes=one.boxes[:0], labels=one.labels[:0]) for one in batch.targets)
    return replace(batch, targets=targets)


def spoils(parameter: nn.Parameter, batch: int) -> Callable[[nn.Module, object], None]:
    """Return a hook that makes ``parameter`` NaN before a forward pass, counted from 0."""
    passes = itertools.count()

    def look(module: nn.Module, inputs: object) -> None:
        if next(passes) == batch:
            with torch.no_grad():
                parameter.fill_(math.nan)

    return look


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count collective operations by name, but those of DistributedDataParallel."""
    names: Sequence[str] = ("all_reduce", "all_gather_object", "broadcast", "barrier")
    calls = dict.fromkeys(names, 0)
    own = {name: getattr(dist, name) for name in names}

    def counting(name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls[name] += 1
            return own[name](*given, **named)

        return call

    for name in names:
        setattr(dist, name, counting(name))
    try:
        yield calls
    finally:
        for name in names:
            setattr(dist, name, own[name])
