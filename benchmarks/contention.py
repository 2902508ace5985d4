"""Time a training step beside programs that keep processors busy, under each way of waiting that OpenMP has.

    python benchmarks/contention.py
    python benchmarks/contention.py --busy 0 2 --ways default watched --steps 20

Threads of PyTorch wait for each other by spinning. Where other programs run, a thread that is waited for may not be
running, and the one that waits takes the processor that it needs. OpenMP reads how to wait from the environment, once,
when torch is loaded, so each way is a process of its own: `default` leaves the variables unset, `watched` is what
commands of `loradetr` do (`lora_detr/processes/threads.py`), the others are named after their variables.

Ratios are to the idle step of `default`. Results of all ways are the same bits: each process prints the hash of its
gradients, and a difference ends the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.report import Row, give, parse
from benchmarks.steps import Inputs, Subject
from lora_detr.processes import threads

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "watched": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in (1000, 30_000, 100_000)},
}
PRESET = "deformable-tiny-lora3"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["default", "watched", "passive"])
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2, 4], help="programs beside, each of one thread")
    parser.add_argument("--counts", nargs="+", type=int, default=[os.cpu_count() or 1], help="numbers of threads")
    parser.add_argument("--steps", type=int, default=12, help="that are timed; the median counts")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a process times no further step")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    given = parse(parser)
    if given.worker:
        if given.watch:
            threads.watch_contention()
        print(json.dumps(measured(given.steps, given.limit)))
        return
    give(rows(given.ways, given.busy, given.counts, given.steps, given.limit), given)


def rows(ways: Sequence[str], busy: Sequence[int], counts: Sequence[int], steps: int, limit: float) -> list[Row]:
    """Return a row for each way, number of threads and number of busy programs."""
    found: list[Row] = []
    hashes: dict[int, str] = {}
    idle = None
    for count in busy:
        for number in counts:
            for way in ways:
                with spinning(count):
                    seconds, digest = in_process(way, number, steps, limit)
                idle = idle or seconds
                assert hashes.setdefault(number, digest) == digest, f"{way}: other gradients"
                found.append(
                    {"way": way, "threads": number, "busy": count, "seconds": seconds, "ratio": seconds / idle}
                )
    return found


def in_process(way: str, count: int, steps: int, limit: float) -> tuple[float, str]:
    """Return the median seconds of a step, and the hash of its gradients, in a process that waits in some way."""
    command = [sys.executable, "-m", "benchmarks.contention", "--worker", "--threads", str(count)]
    command += ["--watch"] if way == "watched" else []
    environment = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    done = subprocess.run(
        [*command, "--steps", str(steps), "--limit", str(limit)],
        env={**environment, **WAYS[way]},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, digest = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), str(digest)


def measured(steps: int, limit: float) -> tuple[float, str]:
    """Return the same, in this process."""
    subject = Subject(PRESET, Inputs((320, 320), 2, 8))
    subject.model.train()
    subject.step()
    gradients = [p.grad for p in subject.model.parameters() if p.grad is not None]
    digest = hashlib.sha256(b"".join(gradient.numpy().tobytes() for gradient in gradients)).hexdigest()
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < steps and time.perf_counter() - began < limit:
        start = time.perf_counter()
        subject.step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), digest


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """Keep as many processors busy."""
    programs = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(count)]
    for program in programs:
        program.start()
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.join()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
