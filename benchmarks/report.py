"""What every benchmark says of its machine, and how it gives its rows: as a table, or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from lora_detr.config.installed import installed_version

STDOUT = "-"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "pycocotools", "hotcoco", "torch-ms-deform-attn")
Value = str | int | float | bool | None
Row = Mapping[str, Value]


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the options that all benchmarks have, read the command line, and set the threads that it asks for."""
    parser.add_argument("--threads", type=int, help="of the arithmetic; default: as many as PyTorch takes")
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE", help="give JSON: alone on stdout, or into FILE"
    )
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    return given


def machine() -> dict[str, Value]:
    """Return what figures depend on: processor, cores, threads, versions of packages that are there, date."""
    found: dict[str, Value] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    versions = {package: installed_version(package) for package in PACKAGES}
    return found | {package: version for package, version in versions.items() if version is not None}


def give(rows: Sequence[Row], given: argparse.Namespace) -> None:
    """Print the rows as a table, or as JSON where that was asked for.

    Args:
        rows: at least one; all have the same keys.
        given: what the command line said, ``json`` among it; the rest is repeated in the JSON.
    """
    facts = machine()
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    options.pop("json")
    if given.json is not None:
        text = json.dumps({"machine": facts, "options": options, "rows": list(rows)}, indent=1)
        if given.json == STDOUT:
            sys.stdout.write(text + "\n")
            return
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    print()
    print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; numbers that are not whole with three significant digits."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_shown(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _shown(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return str(value)


def _processor() -> str:
    """Return the name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
