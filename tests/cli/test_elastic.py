"""Two agents of torchrun, as on two machines: a process or a whole machine is lost, and the run goes on by itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import end, free_port, is_gone, ranks, signal_all, start, wait_for_steps
from tests.small_runs import SMALL, read_lines

Agent = subprocess.Popen[str]


class Nodes:
    """Starts agents that find each other by one address.

    Args:
        data: what is trained on.
        run: the run directory, which both share.
    """

    def __init__(self, data: Path, run: Path) -> None:
        self.host, self.port = "127.0.0.1", free_port()
        self.torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
        self.torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={self.host}:{self.port}", "--rdzv-id=test"]
        self.torchrun += ["--local-addr=localhost", "--monitor-interval=0.2"]
        self.command = ["train", "--preset", SMALL, "--data", data, "--output-dir", run, "--device", "cpu"]
        self.agents: list[Agent] = []

    def add(self) -> Agent:
        """Start one more. The first one holds what all of them share, so it is waited for."""
        self.agents.append(start(*self.command, "--epochs", 4, before=self.torchrun))
        deadline = time.monotonic() + 60
        while not self._is_reached():
            assert time.monotonic() < deadline, "no agent within 60 s"
            time.sleep(0.1)
        return self.agents[-1]

    def _is_reached(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=5).close()
        except OSError:
            return False
        return True


@pytest.fixture
def nodes(shapes_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    nodes = Nodes(shapes_tiny, tmp_path / "run")
    yield nodes
    for agent in nodes.agents:
        signal_all(agent.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def losses(shapes_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The loss of every step of a run of two processes that nothing disturbed."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    command = ["train", "--preset", SMALL, "--data", shapes_tiny, "--output-dir", run, "--epochs", 4]
    code, _, err = end(start(*command, "--device", "cpu", "--nproc", 2))
    assert code == 0, err
    return loss_of(run)


def loss_of(run: Path) -> list[str]:
    return [line["loss_hex"] for line in read_lines(run / "metrics.jsonl")]


def lose_process(nodes: Nodes, agent: Agent) -> None:
    (process,) = ranks(agent.pid).values()
    os.kill(process, signal.SIGKILL)


def lose_node(nodes: Nodes, agent: Agent) -> None:
    """All of a machine goes at once; then another one takes its place."""
    signal_all(agent.pid, signal.SIGKILL)
    assert is_gone(agent.pid)
    nodes.add()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("lose", [lose_process, lose_node], ids=["process", "node"])
def test_a_run_goes_on_by_itself(lose: object, nodes: Nodes, losses: list[str], tmp_path: Path) -> None:
    assert callable(lose)
    run = tmp_path / "run"
    nodes.add()
    second = nodes.add()
    wait_for_steps(run, 4)
    lose(nodes, second)
    ended = [end(agent) for agent in nodes.agents if lose is lose_process or agent is not second]
    assert [code for code, _, _ in ended] == [0, 0], [err for _, _, err in ended]
    assert sum("resuming " in out for _, out, _ in ended) == 1
    assert loss_of(run) == losses  # every bit, and every line once
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert all(is_gone(agent.pid) for agent in nodes.agents)


@pytest.mark.slow
def test_a_restart_that_could_not_go_on_is_refused_at_the_start(shapes_tiny: Path, tmp_path: Path) -> None:
    """With a store that all starts share, or without a named folder; nothing has been trained or written."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost", "--max-restarts=1"]
    command = ["train", "--preset", SMALL, "--data", shapes_tiny, "--device", "cpu"]
    code, _, err = end(start(*command, "--output-dir", tmp_path / "run", before=torchrun))
    assert code == 1  # torchrun has no other
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_their_launcher_processes_save_and_go(shapes_tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--preset", SMALL, "--data", shapes_tiny, "--output-dir", run, "--epochs", 40]
    launcher = start(*command, "--device", "cpu", "--nproc", 2)
    wait_for_steps(run, 1)
    launcher.kill()
    assert is_gone(launcher.pid, within=20)
    launcher.communicate()
    ended = json.loads((run / "exit.json").read_text())
    assert (ended["code"], ended["last_checkpoint"]) == (75, f"step-{ended['step']:08d}")
