"""Take the memory that something needs, in a process of its own, so that nothing else is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")
# Of glibc: pieces of so many bytes and more go back to the system when they are freed. Else fragments of freed memory,
# other ones in every process, hide differences of some per cent.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def rise(run: Callable[[], object], device: str) -> int | None:
    """Return by how many bytes memory rises at most while something runs; None where the system does not tell.

    On a GPU that of tensors, else that of the process, whose earlier peaks are forgotten first where that is allowed.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not STATUS.is_file():
        return None
    try:
        PEAK_RESET.write_text("5", encoding="ascii")
    except OSError:
        print("memory: an earlier peak of the process may hide that of the step", file=sys.stderr)
    held = _status("VmRSS")
    run()
    return _status("VmHWM") - held


def megabytes_alone(script: str, options: Sequence[str]) -> float | None:
    """Return what a script finds by ``rise`` in a new process and prints as JSON, in MB.

    Args:
        script: its path; or ``-m``, and the name of a module is the first of the options.
        options: that make it print the bytes and nothing else.

    Raises:
        SystemExit: it failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, script, *options],
        env={**os.environ, **RETURN_FREED},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    return None if found is None else found / 1e6


def _status(name: str) -> int:
    """Return a number of bytes that the system tells of this process."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
