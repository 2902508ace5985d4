"""Split an optimiser's state into tensors and JSON, and join them again without loss.

``state_dict`` of an optimiser nests tensors in dictionaries of integers; a checkpoint holds flat named tensors and
JSON. Floats survive JSON exactly, because Python writes the shortest text that reads back as the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_detr.errors import CheckpointError
from lora_detr.json_value import JSON

_PREFIX = "state."


def flatten_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, JSON]]:
    """Return (tensors named ``state.<parameter>.<name>``, everything else) of ``optimizer.state_dict()``.

    The tensors are the optimiser's own: write them before its next step.

    Raises:
        TypeError: a value is neither a tensor nor JSON, so that it could not be restored.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, JSON] = {}
    for index, entries in state_dict["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{_PREFIX}{index}.{name}"] = value
            else:
                scalars[f"{_PREFIX}{index}.{name}"] = _plain(value, name)
    groups = [
        {name: _group_value(value, name) for name, value in group.items()} for group in state_dict["param_groups"]
    ]
    return tensors, {"groups": list[JSON](groups), "scalars": scalars}


def unflatten_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``state_dict`` that ``flatten_optimizer`` split.

    Raises:
        CheckpointError: the parts are not of that form.
    """
    state: dict[int, dict[str, Any]] = {}
    try:
        for key, value in [*tensors.items(), *plain["scalars"].items()]:
            index, _, name = key.removeprefix(_PREFIX).partition(".")
            state.setdefault(int(index), {})[name] = value
        restored = [{name: _restored(value) for name, value in group.items()} for group in plain["groups"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"the state of the optimiser is malformed: {error}"
        raise CheckpointError(message, "resume from another checkpoint") from error
    return {"state": dict(sorted(state.items())), "param_groups": restored}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], plain: object, source: Path) -> None:
    """Give an optimiser the state of a checkpoint; rates, decay and moments' decay stay as it was built with.

    Args:
        optimizer: over the parameters of the model that was saved, built with the settings to go on with.
        tensors: as ``flatten_optimizer`` returned them.
        plain: likewise.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: K08, the state is malformed or of other groups of parameters.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    state = unflatten_optimizer(tensors, plain if isinstance(plain, dict) else {})
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise CheckpointError(
            f"{source}: the optimiser's groups of parameters are not those of this run: {error}",
            "rules of rates and decay, and what is frozen, cannot change when a run is resumed",
            code="K08",
        ) from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    _lay_out_like_parameters(optimizer)


def _lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give restored moments the memory format of their parameters, which a file does not hold.

    The values stay, but an update that walks through two formats rounds otherwise, so a resumed run would drift.
    """
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter).copy_(value)


def _group_value(value: Any, name: str) -> JSON:
    # Types that JSON lacks are written as a mapping of one key, which no hyperparameter is.
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, name) for item in value]}
    return _plain(value, name)


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"tuple"}:
        return tuple(value["tuple"])
    if isinstance(value, dict) and value.keys() == {"tensor", "dtype"}:
        return torch.tensor(value["tensor"], dtype=getattr(torch, str(value["dtype"])))
    return value


def _plain(value: Any, name: str) -> JSON:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_plain(item, name) for item in value]
    raise TypeError(f"optimiser value '{name}' is a {type(value).__name__}, which cannot be saved")
