"""Reads a detector of ``transformers`` from a folder or, where there is a network, by its name on the hub."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from lora_detr.config.installed import installed_version
from lora_detr.errors import CheckpointError, ConfigError, nearest
from lora_detr.models.heads import start_rare
from lora_detr.models.huggingface.families import FAMILIES
from lora_detr.tensor_files import first_non_finite

PREFIX = "hf:"
"""What stands before a folder or name where a preset could stand too."""

VERSIONS = (5, 24), (6, 0)
"""First version whose modules and losses are as expected, and the first one that is not."""

SOFTMAX = "its class loss is a softmax with a class for no object, which branches do not have yet"
REFUSED = {
    "detr": SOFTMAX,
    "table-transformer": SOFTMAX,
    "yolos": "it has no decoder to put branches on",
    "deimv2": "its feed-forward networks have three matrices (SwiGLU), and branches read two",
}

CATEGORY_IDS = "loradetr_category_ids"
"""Key of a config: the data set's category ids, in the order of ``id2label``."""

# Modules with a row for each class: linear layers, and the embedding that denoising queries start from.
_OF_CLASSES = re.compile(
    r"(^|\.)(class_embed|class_labels_classifier|enc_score_head|enc_out_class_embed|denoising_class_embed)(\.\d+)?$"
)


@dataclass(frozen=True)
class Pretrained:
    """A detector as it was published.

    Attributes:
        source: the folder or the name.
        config: of ``transformers``.
        names: of its classes, by label.
    """

    source: str
    config: Any
    names: tuple[str, ...]


@dataclass(frozen=True)
class Loaded:
    """A model, and what of it was re-initialised because its classes are others.

    Attributes:
        model: in training mode; of float32.
        restarted: names of its tensors, sorted; tied ones once.
    """

    model: Any
    restarted: tuple[str, ...]


def require_transformers() -> None:
    """Check that the package is there and of a version that is known.

    Raises:
        ConfigError: it is not.
    """
    remedy = "pip install 'lora-detr[hf]'"
    found = installed_version("transformers")
    if found is None:
        raise ConfigError(f"{PREFIX}... needs the package transformers, which is not installed", remedy)
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if not VERSIONS[0] <= numbers < VERSIONS[1]:
        lowest, highest = (".".join(map(str, one)) for one in VERSIONS)
        message = f"{PREFIX}... needs transformers from {lowest} to below {highest}, found {found}"
        raise ConfigError(message, remedy)


def read_pretrained(source: str) -> Pretrained:
    """Read the config of a folder, or of a name on the hub.

    Raises:
        CheckpointError: there is nothing, or it cannot be read.
        ConfigError: the package is missing, or branches cannot be put on this kind of detector.
    """
    require_transformers()
    from transformers import AutoConfig

    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{PREFIX}{source}: expected a folder with config.json and model.safetensors", "see save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{PREFIX}{source}: cannot be read: {_first_line(error)}",
            "check the path; a name of the hub needs a network: where there is none, download it and give the folder",
        ) from error
    kind = str(config.model_type)
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, f"is no detector that branches are known for{nearest(kind, FAMILIES)}")
        raise ConfigError(f"{PREFIX}{source}: {kind}: {reason}", f"use one of {', '.join(FAMILIES)}")
    if getattr(config, "decoder_layerdrop", 0.0):
        raise ConfigError(
            f"{PREFIX}{source}: decoder_layerdrop is {config.decoder_layerdrop}: layers that are left out at random "
            "publish nothing",
            "set it to 0 in config.json",
        )
    names = tuple(str(config.id2label[label]) for label in range(config.num_labels))
    return Pretrained(source, config, names)


def load_model(pretrained: Pretrained, names: Sequence[str], category_ids: Sequence[int]) -> Loaded:
    """Load the weights for some classes.

    Classes are the same if their names are, in the same order. Otherwise all that has a row for each class is
    re-initialised, so that every class has the prior probability of 0.01, and the rest is taken over.

    Args:
        pretrained: what to load.
        names: K names of classes, by label.
        category_ids: their ids in the data set, kept in the config.

    Raises:
        CheckpointError: weights are missing, not finite, or not those of the config.
    """
    from transformers import AutoModelForObjectDetection

    config = copy.deepcopy(pretrained.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: label for label, name in enumerate(names)}
    setattr(config, CATEGORY_IDS, list(category_ids))
    try:
        model, report = AutoModelForObjectDetection.from_pretrained(
            pretrained.source,
            config=config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{PREFIX}{pretrained.source}: weights cannot be read: {_first_line(error)}",
            "expected model.safetensors as save_pretrained writes it",
        ) from error
    of_classes = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and _OF_CLASSES.search(name)
    }
    # Of tied tensors, the first one has the name.
    tensors = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in of_classes]
    other = {_name(key) for key in (*report["mismatched_keys"], *report["missing_keys"])}
    if lost := sorted(other - set(tensors)):
        raise CheckpointError(
            f"{PREFIX}{pretrained.source}: {len(lost)} tensors are missing or of another shape: {', '.join(lost[:5])}",
            "the folder's config.json and model.safetensors must be of one model",
        )
    restarted = tuple(sorted(tensors)) if tuple(names) != pretrained.names else ()
    if restarted:
        for module in of_classes.values():
            nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear):
                start_rare(module)
    if fault := first_non_finite(dict(model.named_parameters())):
        raise CheckpointError(f"{PREFIX}{pretrained.source}: {fault}", "take another copy of it")
    return Loaded(model.train(), restarted)


def _name(key: Any) -> str:
    """Return the name of a tensor from a report of ``transformers``, which has shapes beside some of them."""
    return str(key[0] if isinstance(key, tuple) else key)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
