"""Reads a detector of ``transformers`` from a folder or, where there is a network, by its name on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from lora_detr.config.explain import first_fault
from lora_detr.errors import CheckpointError, ConfigError, counted, listed, nearest
from lora_detr.json_value import JSON
from lora_detr.models.huggingface.config import DECIDED, HuggingFaceConfig
from lora_detr.models.huggingface.families import FAMILIES, REFUSED
from lora_detr.models.huggingface.hub import is_local
from lora_detr.models.huggingface.processor import Preparation, prepare, read_processor
from lora_detr.models.huggingface.versions import PREFIX, require_transformers
from lora_detr.tensor_files import first_non_finite


@dataclass(frozen=True)
class Pretrained:
    """A detector as it was published, without its weights.

    Attributes:
        source: the folder or the name.
        config: as ``transformers`` has it.
        model: its settings.
        preparation: how images are prepared for it.
        names: of its classes, by label.
        notes: choices that were made, a line each.
    """

    source: str
    config: Any
    model: HuggingFaceConfig
    preparation: Preparation
    names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PretrainedWeights:
    """The weights of a detector as it was published.

    Attributes:
        source: the folder or the name.
        tensors: by the names of a detector's ``state_dict``.
        unused: names of tensors that the model has no place for, sorted.
    """

    source: str
    tensors: Mapping[str, Tensor]
    unused: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of them, a line each."""
        if not self.unused:
            return ()
        count = f"{counted(len(self.unused), 'tensor')} of the weights"
        return (f"{PREFIX}{self.source}: not used, the model has no place for {count}: {listed(self.unused)}",)


def read_pretrained(source: str) -> Pretrained:
    """Read config and image processor of a folder, or of a name on the hub.

    Raises:
        CheckpointError: there is nothing, or it cannot be read.
        ConfigError: the package is missing, or branches cannot be put on this kind of detector.
    """
    return pretrained_of(source, read_config(source), read_processor(source))


def pretrained_of(source: str, config: Any, processor: Mapping[str, JSON] | None) -> Pretrained:
    """Return what a config of ``transformers`` and the content of an image processor's file describe.

    Raises:
        CheckpointError: values of the image processor, or labels, cannot be used.
        ConfigError: branches cannot be put on such a detector.
    """
    values: dict[str, JSON] = json.loads(config.to_json_string(use_diff=False))
    family = FAMILIES[config.model_type]
    preparation = prepare(processor, family, values, f"{PREFIX}{source}")
    notes = [preparation.note] if preparation.note else []
    if not values.get("auxiliary_loss") and not family.supervises_all_layers_freely:
        notes.append(
            "auxiliary_loss is false: the last decoder layer alone is supervised by the model's own loss; switched on, "
            "it would change what the model predicts"
        )
    elif not values.get("auxiliary_loss"):
        # Otherwise the last layer alone would be supervised, and branches be credited with supervising the others.
        values["auxiliary_loss"] = True
        notes.append("auxiliary_loss is switched on: every decoder layer is supervised, predictions stay the same")
    if _loses_activations(config):
        remedy = "; unless it was trained like that, set freeze_backbone_batch_norms to false in config.json"
        notes.append(
            f"transformers builds {config.backbone_config.backbone} with frozen batch norms, without the activations "
            f"inside its own{remedy if hasattr(config, 'freeze_backbone_batch_norms') else ''}"
        )
    kept = _portable({key: value for key, value in values.items() if key not in DECIDED})
    given = {"config": kept, "processor": dict(processor or {}), "mean": preparation.mean, "std": preparation.std}
    try:
        model = HuggingFaceConfig.model_validate(given)
    except ValidationError as error:
        message = f"{PREFIX}{source}: {first_fault(error, None)}"
        raise ConfigError(message, "change it in config.json, or take another model") from error
    if set(config.id2label) != set(range(config.num_labels)):
        raise CheckpointError(
            f"{PREFIX}{source}: id2label has the labels {listed(config.id2label)}, not 0 to {config.num_labels - 1}",
            "correct config.json",
        )
    names = tuple(str(config.id2label[label]) for label in range(config.num_labels))
    return Pretrained(source, config, model, preparation, names, tuple(notes))


def read_weights(source: str) -> PretrainedWeights:
    """Return the weights of a folder, or of a name on the hub.

    Raises:
        CheckpointError: weights are missing, not finite, or not those of the config.
    """
    config = read_config(source)
    from transformers import AutoModelForObjectDetection
    from transformers.utils import logging

    before, quiet = logging.get_verbosity(), cast(Any, logging.set_verbosity_error)
    quiet()  # what does not fit is reported here
    try:
        model, report = AutoModelForObjectDetection.from_pretrained(
            source,
            config=config,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            local_files_only=is_local(source),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{PREFIX}{source}: weights cannot be read: {_first_line(error)}",
            "expected model.safetensors as save_pretrained writes it",
        ) from error
    finally:
        logging.set_verbosity(before)
    lost = sorted({_name(key) for key in (*report["mismatched_keys"], *report["missing_keys"])})
    if lost:
        raise CheckpointError(
            f"{PREFIX}{source}: {len(lost)} tensors are missing or of another shape: {listed(lost)}",
            "the folder's config.json and model.safetensors must be of one model",
        )
    if fault := first_non_finite({k: t for k, t in model.state_dict().items() if t.is_floating_point()}):
        raise CheckpointError(f"{PREFIX}{source}: {fault}", "take another copy of it")
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return PretrainedWeights(source, tensors, tuple(sorted(map(_name, report["unexpected_keys"]))))


def read_config(source: str) -> Any:
    """Return the config of a folder, or of a name on the hub, as ``transformers`` has it.

    Raises:
        CheckpointError: there is nothing, or it cannot be read.
        ConfigError: the package is missing, or branches cannot be put on this kind of detector.
    """
    require_transformers()
    from transformers import AutoConfig

    folder = Path(source)
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) > 2):
        raise CheckpointError(f"{PREFIX}{source}: no such folder", "check the path")
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{PREFIX}{source}: expected a folder with config.json and model.safetensors", "see save_pretrained"
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=is_local(source))
    except Exception as error:  # transformers checks values by errors of several packages
        remedy = "take another copy of config.json"
        if not folder.exists():
            remedy = "check the path; a name of the hub needs a network: without one, download it and give the folder"
        raise CheckpointError(f"{PREFIX}{source}: cannot be read: {_first_line(error)}", remedy) from error
    kind = str(config.model_type)
    if kind not in FAMILIES:
        reason = REFUSED.get(kind, f"is no detector that branches are known for{nearest(kind, FAMILIES)}")
        raise ConfigError(f"{PREFIX}{source}: {kind}: {reason}", f"use one of {', '.join(FAMILIES)}")
    return config


def _portable(values: dict[str, JSON]) -> dict[str, JSON]:
    """Return a config without the folder that it came from, which fetches no weights of a backbone: it has them."""
    kept: dict[str, JSON] = {}
    for key, value in values.items():
        kept[key] = _portable(value) if isinstance(value, dict) else value
        if key == "use_pretrained_backbone":
            kept[key] = False
    kept.pop("_name_or_path", None)
    return kept


def _loses_activations(config: Any) -> bool:
    """Return whether frozen batch norms replace those of timm that have an activation in them, as EfficientNet's."""
    backbone: Any = getattr(config, "backbone_config", None)
    is_timm = getattr(backbone, "model_type", None) == "timm_backbone"
    if not is_timm or not getattr(config, "freeze_backbone_batch_norms", True):
        return False
    import timm
    from timm.layers.norm_act import BatchNormAct2d

    try:
        with torch.device("meta"):
            network = timm.create_model(backbone.backbone, pretrained=False)
    except Exception:  # reported when the detector is built
        return False
    return any(isinstance(part, BatchNormAct2d) for part in network.modules())


def _name(key: Any) -> str:
    """Return the name of a tensor from a report of ``transformers``, which has shapes beside some of them."""
    return str(key[0] if isinstance(key, tuple) else key)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
