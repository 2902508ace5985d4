"""The job script for Slurm: what it asks for, and that it runs, saves when told, and is put back into the queue."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_detr.errors import ConfigError
from lora_detr.processes.slurm import slurm_script
from tests.commands import wait_for_steps
from tests.small_runs import SMALL, read_lines

# What Slurm brings, for two nodes on this machine: srun starts the command once a node and passes on signals.
SRUN = """#!/bin/bash
trap 'kill -USR1 "${nodes[@]}"' USR1
for node in 0 1; do
    SLURM_STEP_NUM_TASKS=2 "$1" "$2" "$3" --local-addr=localhost "${@:4}" &
    nodes+=($!)
done
code=0
for node in "${nodes[@]}"; do
    while kill -0 "$node" 2>/dev/null; do wait "$node"; last=$?; done
    [ "$last" -ne 0 ] && code=$last
done
exit $code
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost
[ "$1" = requeue ] && echo "$2" >> "$QUEUE"
exit 0
"""


def script(*arguments: str, output: Path = Path("runs/a b"), gpus: int | None = 8, nproc: int | None = None) -> str:
    return slurm_script(arguments, output, nodes=2, gpus=gpus, nproc=nproc)


def test_it_asks_for_what_was_given_and_repeats_the_command() -> None:
    text = script("train", "--launcher", "slurm", "--nodes=2", "--gpus", "8", "--aux", "3", "--set", "a=b c")
    assert "#SBATCH --nodes=2\n" in text
    assert "#SBATCH --gpus-per-node=8\n" in text
    assert "--nnodes=2 --nproc-per-node=8 " in text
    assert "-m lora_detr train --aux 3 --set 'a=b c' --output-dir 'runs/a b' --auto-resume\n" in text
    assert "'runs/a b'/exit.json" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)  # it is a script


def test_a_run_directory_that_was_given_is_not_given_twice() -> None:
    text = script("train", "--output-dir=here", "--auto-resume", output=Path("here"))
    assert text.count("--output-dir") == 1
    assert text.count("--auto-resume") == 1
    text = script("train", "-o", "here", output=Path("here"))
    assert "-m lora_detr train -o here --auto-resume\n" in text


def test_on_cpus_no_gpu_is_asked_for() -> None:
    text = script("train", "--device", "cpu", "--nproc", "4", gpus=None, nproc=4)
    assert "gpus-per-node" not in text
    assert "--nproc-per-node=4 " in text


def test_a_job_must_say_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="a job must state what it needs") as caught:
        script("train", gpus=None)
    assert "--gpus N" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.distributed
def test_the_job_saves_when_its_time_is_up_and_goes_on_when_it_is_run_again(shapes_tiny: Path, tmp_path: Path) -> None:
    """Twice the very same script; the second time it runs to its end."""
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    run, queue = tmp_path / "run", tmp_path / "queue"
    given = ("train", "--preset", str(SMALL), "--data", str(shapes_tiny), "--device", "cpu", "--epochs", "4")
    asked = [sys.executable, "-m", "lora_detr", *given, "--output-dir", str(run), "--launcher", "slurm"]
    job = subprocess.run([*asked, "--nodes", "2", "--nproc", "1"], capture_output=True, text=True, check=True).stdout
    assert shlex.join(given) in job
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "QUEUE": str(queue), "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "two"}
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}

    def submit() -> subprocess.Popen[str]:
        return subprocess.Popen(["bash", "-c", job], env=environment, stderr=subprocess.PIPE, text=True)

    process = submit()
    wait_for_steps(run, 2)
    (srun,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(srun), signal.SIGUSR1)  # what Slurm sends to the step
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert queue.read_text() == f"{os.getpid()}\n"
    stopped = json.loads((run / "exit.json").read_text())
    assert (stopped["code"], stopped["last_checkpoint"]) == (75, f"step-{stopped['step']:08d}")
    assert stopped["step"] < 12

    process = submit()
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert queue.read_text() == f"{os.getpid()}\n"  # done: not queued again
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, 13))
    assert json.loads((run / "exit.json").read_text())["code"] == 0
