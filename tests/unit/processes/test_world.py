"""Processes that cannot reach each other say what is in the way."""

from __future__ import annotations

import socket

import pytest
import torch.distributed as dist

from lora_detr.errors import WorkerError
from lora_detr.processes import launch
from lora_detr.processes.world import World, unreachable


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of the first of two processes."""
    variables = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def _refused() -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        World.from_environment("cpu", 20.0)
    assert (caught.value.exit_code, caught.value.code) == (7, "P09")
    return caught.value


def test_a_port_in_use_is_named_p09(launched: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launched.setenv("MASTER_PORT", str(port))
        assert _refused().message == f"port {port} (MASTER_PORT) is in use by another program"


def test_a_port_that_is_no_number_is_named_p09(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("MASTER_PORT", "abc")
    assert _refused().message.startswith(
        "the processes cannot be joined at localhost:abc (MASTER_ADDR and MASTER_PORT)"
    )


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at /gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: nosuch0\n",
        "Unable to find interface for: nosuch0",
        "Bootstrap : no socket interface found",
    ],
)
def test_an_interface_that_is_missing_is_named_p09(text: str, launched: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    launched.setattr(dist, "init_process_group", fail)
    launched.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    assert _refused().message == "no network interface leads to the other processes (GLOO_SOCKET_IFNAME is nosuch0)"
    launched.delenv("GLOO_SOCKET_IFNAME")
    assert "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME are not set" in _refused().message


def test_another_process_that_is_gone_is_no_fault_of_the_network() -> None:
    assert unreachable(RuntimeError("Connection closed by peer [127.0.0.1]:1234")) is None
    assert unreachable(dist.DistNetworkError("The client socket has timed out after 20000ms")) is None


@pytest.mark.parametrize("error", [OSError(101, "Network is unreachable"), dist.DistNetworkError("cannot bind\nat")])
def test_a_machine_without_loopback_starts_no_processes_p09(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise error

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: start)
    monkeypatch.setattr(launch.Stragglers, "watch", lambda _: None)
    with pytest.raises(WorkerError) as caught:
        launch.launch(2, ["train"])
    assert (caught.value.exit_code, caught.value.code) == (7, "P09")
    assert caught.value.message.startswith("2 processes cannot be started on localhost: ")
    assert "\n" not in caught.value.message
