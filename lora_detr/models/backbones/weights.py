"""Where a backbone's weights come from, and how a state dict is fitted to a backbone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_detr.errors import CheckpointError
from lora_detr.tensor_files import read_tensors

logger = logging.getLogger("lora_detr")

NONE, IMAGENET, AUTO = "none", "imagenet", "auto"
REMEDY = "give a local file with --set model.backbone.weights=PATH, or start from scratch with =none"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a flat state dict from a ``.safetensors`` or a ``.pth`` file (tensors only, nothing is executed).

    Raises:
        CheckpointError: the file is missing, unreadable, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"backbone weights {path}: no such file", REMEDY)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"backbone weights {path}: cannot be read as tensors ({type(error).__name__})", REMEDY
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"backbone weights {path}: expected a mapping from names to tensors", REMEDY)
    return {str(key): value for key, value in content.items()}


def fit(body: nn.Module, state: Mapping[str, Tensor], source: str, optional: Callable[[str], bool]) -> None:
    """Load ``state`` into ``body``; all of the body's tensors must be there with their shapes.

    Args:
        body: the network without its classifier.
        state: may hold more than the body needs, if ``optional`` says so for the name.
        source: named in messages.
        optional: whether a tensor of ``state`` that the body lacks may be ignored.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape; nothing has been loaded then.
    """
    own = body.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own and not optional(key)]
    problems += [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:10])
        raise CheckpointError(f"backbone weights {source} do not fit: {len(problems)} differences: {shown}", REMEDY)
    body.load_state_dict({key: state[key] for key in own})


def fetch(source: str, url: str | None, download: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Announce and run a download; any failure becomes one message that says how to go on without a network.

    Args:
        source: named in messages.
        url: of a file with these weights, for whoever can fetch it by other means; None when there is none.
        download: does it.

    Raises:
        CheckpointError: the weights could not be fetched.
    """
    logger.info("fetching backbone weights %s (kept in the cache of the library that fetches them)", source)
    try:
        return download()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"get {url} elsewhere and {REMEDY}" if url else REMEDY
        raise CheckpointError(f"backbone weights {source} cannot be fetched: {reason}", remedy) from error
