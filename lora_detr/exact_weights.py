"""Load weights into a module only where they fit exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from lora_detr.errors import CheckpointError

SHOWN = 10


def load_exact(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` into ``module``, which is unchanged unless every name, shape and dtype fits.

    Args:
        module: any module.
        tensors: its whole ``state_dict``; on any device.
        source: the file they came from, for the message.

    Raises:
        CheckpointError: names the first differences and their number.
    """
    differences = list_differences(module.state_dict(), tensors)
    if differences:
        message = f"{source}: {describe_differences(differences)}"
        remedy = "use the configuration it was trained with"
        raise CheckpointError(message, remedy, code="K08")
    module.load_state_dict(dict(tensors), strict=True)


def describe_differences(differences: Sequence[str]) -> str:
    """Return how many places do not fit, and the first of them, a line each."""
    shown = "\n".join(f"  {line}" for line in differences[:SHOWN])
    more = f"\n  and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return f"does not fit the model in {len(differences)} places\n{shown}{more}"


def list_differences(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that only one side has, or whose shape or dtype differs."""
    lines = [f"missing in the file: {name}" for name in model if name not in file]
    lines += [f"unknown to the model: {name}" for name in file if name not in model]
    for name, tensor in model.items():
        if name in file and file[name].shape != tensor.shape:
            lines.append(f"{name}: shape {list(file[name].shape)} in the file, {list(tensor.shape)} in the model")
        elif name in file and file[name].dtype != tensor.dtype:
            lines.append(f"{name}: {file[name].dtype} in the file, {tensor.dtype} in the model".replace("torch.", ""))
    return lines
