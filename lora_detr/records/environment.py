"""What results may depend on besides settings and data: versions, device, threads, and the implementations in use."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from lora_detr.config.installed import installed_version
from lora_detr.evaluation.coco_eval import best_backend
from lora_detr.ops.sampling_choice import choose

NOT_INSTALLED = "not installed as a package"
PACKAGES = ("lora-detr", "torch", "torchvision", "timm", "numpy", "scipy", "pycocotools", "safetensors", "pydantic")


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
