"""Start the processes of a command on this machine through torch elastic, and say how they ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lora_detr.errors import ConfigError, Stopped, WorkerError
from lora_detr.processes.process import PEER_GONE, REQUESTS_TO_END, tasks_without_launcher
from lora_detr.processes.world import visible_gpus

# Seconds that processes have to save and go after a signal: a large checkpoint takes its time.
SAVING = 60
# Loggers of torch that report every signal and every end of a process; the processes and this one say what matters.
TALKING = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")
# Seconds that the other processes have to go once one has ended before its time; then they are killed. To find out whom
# they have lost takes them 1.2 (``World.silent``); torch by itself would wait for half a minute.
GRACE = 3
# Seconds between two looks, here and by torch: short beside GRACE, and too rare to take time from the training.
INTERVAL = 0.1


def launch_if_wanted(device: str, gpus: int | None, nproc: int | None) -> bool:
    """Run this command again in as many processes as are wanted, and wait for them; arguments as below.

    Returns:
        Whether it was run: not if one process is enough, nor in a process that a launcher has started (ours, torchrun,
        or any that sets the same variables).
    """
    if "RANK" in os.environ:
        return False
    tasks = tasks_without_launcher()
    if tasks:
        raise ConfigError(
            f"{tasks} tasks of Slurm run this command, each on its own",
            "request one task per node and run torchrun in it; loradetr train --launcher slurm prints such a job",
        )
    count = processes_wanted(device, gpus, nproc)
    if count > 1:
        launch(count, sys.argv[1:])
    return count > 1


def processes_wanted(device: str, gpus: int | None, nproc: int | None) -> int:
    """Return how many processes this machine should run.

    Args:
        device: as ``--device`` has it.
        gpus: as asked for; None takes all that are visible.
        nproc: processes on the CPU, as asked for.

    Raises:
        ConfigError: the options contradict each other or this machine.
    """
    visible = visible_gpus()
    for name, value in (("--gpus", gpus), ("--nproc", nproc)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: expected 1 or more", "leave it out for the default")
    on_cpu = device == "cpu" or (device == "auto" and not visible)
    if on_cpu:
        if gpus is not None:
            raise ConfigError(f"--gpus {gpus}: PyTorch sees {visible} CUDA devices", "use --device cpu --nproc N")
        return nproc or 1
    if nproc is not None:
        raise ConfigError(f"--nproc {nproc}: is for --device cpu", "use --gpus N, one process each")
    if ":" in device:
        if (gpus or 1) > 1:
            raise ConfigError(f"--gpus {gpus}: --device {device} is a single GPU", "use --device cuda")
        return 1
    if gpus is not None and gpus > visible:
        raise ConfigError(f"--gpus {gpus}: PyTorch sees {visible} CUDA devices", f"ask for at most {visible}")
    return gpus or max(visible, 1)


def launch(count: int, arguments: Sequence[str]) -> None:
    """Run the command line ``arguments`` in ``count`` processes and wait for them.

    Args:
        count: number of processes, at least 2.
        arguments: of ``loradetr``, as this process was given them.

    Raises:
        SystemExit: a process ended with a code of its own, which is passed on; its message has been shown.
        Stopped: a signal asked for it; the processes have saved.
        WorkerError: a process was ended by a signal, or too soon; names its rank. P09: none could be started.
    """
    for name in TALKING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # a machine may not know its own name
        max_restarts=0,
        monitor_interval=INTERVAL,
        signals_to_handle=",".join(number.name for number in REQUESTS_TO_END),
        shutdown_timeout=SAVING,
    )
    stragglers = Stragglers()
    threading.Thread(target=stragglers.watch, daemon=True).start()
    try:
        elastic_launch(config, sys.executable)("-m", "lora_detr", *arguments)
    except SignalException as request:
        name = signal.Signals(request.sigval).name
        raise Stopped(f"stopped on {name}", request.sigval == signal.SIGINT) from None
    except (OSError, RendezvousError, dist.DistError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise WorkerError(
            f"{count} processes cannot be started on localhost: {reason[0]}",
            "check that the loopback interface, lo, is up and localhost is its name; or train in one process",
            code="P09",
        ) from error
    except ChildFailedError as error:
        raise _blame(error.failures, stragglers.first, stragglers.killed) from None


def _blame(
    failures: Mapping[int, ProcessFailure], first: Collection[int], killed: Collection[int]
) -> WorkerError | SystemExit:
    """Return what to end with after processes have failed.

    Torch takes an exit with 0 for no failure, and blames whoever fails first, be it for want of that process.

    Args:
        failures: by rank; those that ended with 0, or were ended by torch, are not among them.
        first: ranks that had ended when the first end was noticed.
        killed: ids of processes that were killed since they were still there after that.
    """
    causes = {rank: one for rank, one in failures.items() if one.pid not in killed and not _missed_another(one)}
    too_soon = sorted(set(first) - set(failures))
    if not causes and too_soon:
        return WorkerError(
            f"rank {', '.join(map(str, too_soon))} ended too soon",
            "see its own message, if it has one; continue with loradetr train --resume RUN",
            code="P08",
        )
    rank, failure = min((causes or failures).items(), key=lambda item: item[1].timestamp)
    if failure.exitcode >= 0:
        return SystemExit(failure.exitcode)
    name = signal.Signals(-failure.exitcode).name
    return WorkerError(
        f"rank {rank} (process {failure.pid}) was ended by {name}",
        "out of memory is the usual reason for SIGKILL; continue with loradetr train --resume RUN",
        code="P06",
    )


def _missed_another(failure: ProcessFailure) -> bool:
    """Return whether a process has left word that it failed for want of another."""
    return PEER_GONE in str(failure.message)


@dataclass(frozen=True)
class _Child:
    """A process with a rank; its state is that of ``/proc``, such as T for one that is stopped."""

    rank: int
    state: str


class Stragglers:
    """Once a process has ended, kills those that are still there after a while, and those that are stopped at once.

    All processes of a run that ends well end together. After a failure torch asks the others to end and then waits for
    half a minute; one that hangs, or is stopped, hears nothing. Others need a moment to tell whom they have lost.
    Without ``/proc`` nothing is found, and nothing killed.

    Attributes:
        first: ranks that had ended when that was first noticed.
        killed: ids of the processes that were killed here.
    """

    def __init__(self) -> None:
        self.first: tuple[int, ...] = ()
        self.killed: set[int] = set()

    def watch(self) -> None:
        """Look again and again; for a thread of the process that has started the others."""
        known: dict[int, _Child] = {}
        since = None
        while True:
            time.sleep(INTERVAL)
            running = _running()
            known |= running
            if len(running) == len(known):
                continue
            if since is None:
                since = time.monotonic()
                self.first = tuple(sorted(child.rank for process, child in known.items() if process not in running))
            too_late = time.monotonic() - since > GRACE
            for process, child in running.items():
                if too_late or child.state == "T":
                    self.killed.add(process)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)


def _running() -> dict[int, _Child]:
    """Return the processes with a rank that this one has started and that have not ended."""
    found = {}
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                place = Path("/proc") / child
                with contextlib.suppress(OSError):
                    state = place.joinpath("stat").read_text().rpartition(")")[2].split()[0]
                    variables = place.joinpath("environ").read_bytes().split(b"\0")
                    ranks = [int(item.removeprefix(b"RANK=")) for item in variables if item.startswith(b"RANK=")]
                    if state != "Z" and ranks:
                        found[int(child)] = _Child(ranks[0], state)
    return found
