"""The folder of a run: what is written when, so that nothing is lost and every result can be repeated."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lora_detr.atomic_files import prepare_directory, write_file
from lora_detr.errors import ConfigError, OutputError

PACKAGES = ("lora-detr", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "safetensors", "pydantic")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run directory, and writers for what is written once."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """One JSON line an epoch."""
        return self.path / "log.txt"

    @property
    def results(self) -> Path:
        """One CSV row an evaluation."""
        return self.path / "results.csv"

    @property
    def evaluation(self) -> Path:
        """Folder of the last evaluation."""
        return self.path / "eval"

    def create(self, resume: bool) -> None:
        """Make the folder; one that is in use is refused unless the run is resumed.

        Raises:
            ConfigError: C06, the folder is not empty; nothing was touched.
            OutputError: the folder cannot be made or written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path}: expected a folder, found a file", "choose another --output-dir")
        if not resume and self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigError(
                f"{self.path}: the run directory is not empty; nothing was touched",
                f"continue it with --resume {self.path}, or choose another --output-dir",
                code="C06",
            )
        for folder in (self.path, self.checkpoints, self.evaluation):
            prepare_directory(folder)

    def discard(self) -> None:
        """Remove the folder again if nothing but empty folders is in it."""
        for folder in (self.checkpoints, self.evaluation, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run atomically.

        Raises:
            OutputError: it cannot be written.
        """
        write_file(self.path / name, text.encode())

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file of the run atomically."""
        self.write_text(name, json.dumps(value, indent=1, allow_nan=True) + "\n")

    def write_exit(self, code: int, kind: str, rank: int, step: int, message: str, last_checkpoint: str | None) -> None:
        """Write ``exit.json``: how the run ended, for scripts."""
        self.write_json(
            "exit.json",
            {
                "code": code,
                "class": kind,
                "rank": rank,
                "step": step,
                "message": message,
                "last_checkpoint": last_checkpoint,
            },
        )


def next_run(parent: Path, name: str) -> Path:
    """Return ``parent/name-<n>`` with the smallest n from 1 that does not exist."""
    n = 1
    while (parent / f"{name}-{n}").exists():
        n += 1
    return parent / f"{name}-{n}"


def environment(device: torch.device) -> Mapping[str, object]:
    """Return what results may depend on: versions, device, threads, CPU capability."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def command_line() -> str:
    """Return the command as it could be typed again."""
    return shlex.join(["loradetr", *sys.argv[1:]])
