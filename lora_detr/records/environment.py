"""What results may depend on besides settings and data: versions, device, threads, and the implementations in use."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from lora_detr.evaluation.coco_eval import best_backend
from lora_detr.ops.sampling_choice import choose

NOT_INSTALLED = "not installed as a package"
PACKAGES = ("lora-detr", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "safetensors", "pydantic")


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None where none is installed under that name."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(device: torch.device) -> Mapping[str, object]:
    """Return what results may depend on: versions, device, threads, CPU capability, which of several ways is taken."""
    versions = {package: installed_version(package) or NOT_INSTALLED for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "attention": choose(device.type).names,
        "evaluation": best_backend(),
    }
