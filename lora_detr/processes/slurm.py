"""A job script for Slurm that runs a training on several machines, and starts it again where it was stopped."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_detr.errors import ConfigError

# Options of ``loradetr train`` that the script replaces, and whether a value follows.
REPLACED = {"--launcher": True, "--nodes": True, "--gpus": True, "--nproc": True, "--auto-resume": False}
# Seconds before the end of its time that a job is told, so that it can save; the last minute is left for the script,
# which puts the job back into the queue.
NOTICE = 300
# How often torchrun starts all processes again after one has failed: enough for lost nodes, while a fault that
# comes back each time ends the job.
RESTARTS = 3


def slurm_script(arguments: Sequence[str], output: Path, *, nodes: int, gpus: int | None, nproc: int | None) -> str:
    """Return the script.

    Every node runs one torchrun, which starts the processes of that node. When the time of the job is nearly up Slurm
    sends SIGUSR1; the run saves, and the script puts the job back into the queue. A failed process or node leads to a
    restart of all from the last checkpoint.

    Args:
        arguments: of ``loradetr``, as given.
        output: run directory, in a folder that all nodes share.
        nodes: machines, at least 1.
        gpus: of each node; None for a run on CPUs.
        nproc: processes of each node, on CPUs.

    Raises:
        ConfigError: a number is below 1, or neither GPUs nor processes are given.
    """
    count = gpus if gpus is not None else nproc
    if nodes < 1 or count is None or count < 1:
        raise ConfigError(
            f"--launcher slurm: found --nodes {nodes}, --gpus {gpus}, --nproc {nproc}; a job must state what it needs",
            "give --nodes N and --gpus N (of each node; on CPUs --device cpu --nproc N)",
        )
    command = shlex.join([*_kept(arguments), *_own(arguments, output)])
    resource = f"#SBATCH --gpus-per-node={gpus}\n" if gpus is not None else ""
    run, python = shlex.quote(str(output)), shlex.quote(sys.executable)
    return f"""#!/bin/bash
#SBATCH --job-name={output.name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
{resource}#SBATCH --cpus-per-task={4 * count}
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@{NOTICE}

# Written by `loradetr train --launcher slurm`; submit it with sbatch. Partition and account are yours to add.
set -u
# Without it restarted processes connect to the addresses of the previous ones.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# How it ended before must not be taken for the end of this job.
rm -f {run}/exit.json
srun {python} -m torch.distributed.run \\
    --nnodes={nodes} --nproc-per-node={count} --max-restarts={RESTARTS} \\
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 20000))" \\
    --signals-to-handle=SIGTERM,SIGUSR1,SIGINT --shutdown-timeout={NOTICE - 60} \\
    -m lora_detr {command}
code=$?

# 75: stopped on a signal after saving. The same script resumes from there.
if grep -q '"code": 75,' {run}/exit.json 2>/dev/null; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
"""


def _kept(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without those that the script replaces."""
    kept: list[str] = []
    following = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if following:
            following = False
        elif name in REPLACED:
            following = REPLACED[name] and not equals
        else:
            kept.append(argument)
    return kept


def _own(arguments: Sequence[str], output: Path) -> list[str]:
    """Return what the command of every node needs besides."""
    named = any(argument.partition("=")[0] == "--output-dir" or argument.startswith("-o") for argument in arguments)
    return [*([] if named else ["--output-dir", str(output)]), "--auto-resume"]
