"""A two-stage Deformable-DETR of ``transformers`` in our settings, and ours in its config; else why it has none."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_detr.checkpoints.official.classes import COCO_MAP
from lora_detr.checkpoints.official.system import RESNETS
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError, ConfigError
from lora_detr.json_value import JSON
from lora_detr.models import DeformableDetrConfig, HuggingFaceConfig
from lora_detr.models.backbones import BackboneConfig
from lora_detr.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD, STRIDES
from lora_detr.models.backbones.weights import NONE
from lora_detr.models.huggingface.pretrained import Pretrained
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.run_config import RunConfig

KIND, PRESET = "deformable_detr", "deformable"
# Width of the stem, and of the four stages; three convolutions in a block give four times as many channels.
STEM, WIDTHS, WIDENED = 64, (64, 128, 256, 512), 4
STAGES = ("stage2", "stage3", "stage4")

# What a config must have, since ours has nothing else.
_FIXED: dict[str, object] = {
    "two_stage": True,
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "num_channels": 3,
}
# What a config has for encoder and decoder apart, and ours once.
_ONCE = (
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("encoder_n_points", "decoder_n_points"),
)
_RESNET: dict[str, object] = {
    "embedding_size": STEM,
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


def settings_of(pretrained: Pretrained, categories: CategoryMap, data: Path | None) -> RunConfig:
    """Return the settings of a run whose detector is that of a folder.

    Args:
        pretrained: the folder.
        categories: its labels.
        data: data set that the run is to be of.

    Raises:
        CheckpointError: K08, it has parts that ours has not; all of them are listed.
    """
    theirs = pretrained.config
    if theirs.model_type != KIND:
        raise CheckpointError(
            f"{PREFIX}{pretrained.source}: is a {theirs.model_type}; only {KIND} is a detector of ours too",
            f"train it as it is: loradetr train --baseline {PREFIX}{pretrained.source}",
            code="K08",
        )
    faults = _differing(theirs, _FIXED)
    faults += [
        f"{first} is {getattr(theirs, first)}, but {second} {getattr(theirs, second)}"
        for first, second in _ONCE
        if getattr(theirs, first) != getattr(theirs, second)
    ]
    if theirs.dilation:
        faults.append("dilation is true")
    backbone = _backbone(theirs.backbone_config, faults)
    if faults:
        raise CheckpointError(
            f"{PREFIX}{pretrained.source}: cannot be expressed: {'; '.join(faults)}",
            "ours is two-stage with box refinement, on a ResNet; train others as they are, by --baseline hf:...",
            code="K08",
        )
    ready = pretrained.preparation
    wanted: dict[str, JSON] = {
        "model.backbone": {"kind": "resnet", "name": backbone},
        "data.num_classes": "coco91" if categories == COCO_MAP else "auto",
        "model.num_queries": theirs.two_stage_num_proposals,
        "model.hidden_dim": theirs.d_model,
        "model.ffn_dim": theirs.decoder_ffn_dim,
        "model.encoder_layers": theirs.encoder_layers,
        "model.decoder_layers": theirs.decoder_layers,
        "model.heads": theirs.decoder_attention_heads,
        "model.levels": theirs.num_feature_levels,
        "model.points": theirs.decoder_n_points,
        "model.dropout": theirs.dropout,
        "data.evaluation.size": ready.size,
        **({"data.evaluation.square": True} if ready.square else {"data.evaluation.max_size": ready.max_size}),
    }
    if (ready.mean, ready.std) != (IMAGENET_MEAN, IMAGENET_STD):
        wanted["model.backbone"] = {
            "kind": "timm",
            "name": backbone,
            "weights": NONE,
            "norm": "frozen-batch",
            "freeze_stages": 1,
            "mean": list(ready.mean),
            "std": list(ready.std),
        }
    if data is not None:
        wanted["data.path"] = str(data.resolve())
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in wanted.items())
    try:
        return load_config(RunConfig, preset=PRESET, overrides=overrides).config.resolved()
    except ConfigError as error:
        raise CheckpointError(
            f"{PREFIX}{pretrained.source}: sizes that make no model: {error.message}",
            "the folder's config.json must be of a two-stage Deformable-DETR",
            code="K08",
        ) from error


def config_of(deployment: DeploymentConfig, source: Path) -> Any:
    """Return the config that makes ``transformers`` build the same detector.

    Raises:
        CheckpointError: K08, the detector has parts that ``transformers`` has not; all of them are listed.
    """
    transformers: Any = importlib.import_module("transformers")
    model = deployment.model
    assert not isinstance(model, HuggingFaceConfig)
    faults = []
    if not isinstance(model, DeformableDetrConfig):
        faults.append(f"model.kind is {model.kind}")
    elif model.mixed_selection:
        faults.append("model.mixed_selection is true (Deformable-DETR++)")
    faults += _faults_of_ours(model.backbone)
    if faults:
        raise CheckpointError(
            f"{source}: transformers has no such detector: {'; '.join(faults)}",
            "only a two-stage Deformable-DETR on a ResNet with frozen batch norm can be converted",
            code="K08",
        )
    wide, depths = next(layout for layout, name in RESNETS.items() if name == _plain(model.backbone.name))
    backbone = transformers.ResNetConfig(
        embedding_size=STEM,
        hidden_sizes=[(WIDENED if wide else 1) * width for width in WIDTHS],
        depths=list(depths),
        layer_type="bottleneck" if wide else "basic",
        out_features=list(STAGES),
    )
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone,
        two_stage=True,
        with_box_refine=True,
        # Ours supervises all layers; predictions do not depend on it.
        auxiliary_loss=True,
        num_queries=model.num_queries,
        two_stage_num_proposals=model.num_queries,
        d_model=model.hidden_dim,
        encoder_ffn_dim=model.ffn_dim,
        decoder_ffn_dim=model.ffn_dim,
        encoder_layers=model.encoder_layers,
        decoder_layers=model.decoder_layers,
        encoder_attention_heads=model.heads,
        decoder_attention_heads=model.heads,
        encoder_n_points=model.points,
        decoder_n_points=model.points,
        num_feature_levels=model.levels,
        dropout=model.dropout,
        attention_dropout=model.dropout,
        activation_dropout=model.dropout,
    )
    config.num_labels = len(deployment.category_ids)
    return config


def _faults_of_ours(backbone: BackboneConfig) -> list[str]:
    """Return why a backbone, without weights, is none that can be written."""
    faults = []
    if _plain(backbone.name) not in RESNETS.values():
        faults.append(f"model.backbone.name is {backbone.name}")
    elif backbone.kind == "timm" and backbone.strides != tuple(STRIDES):
        faults.append(f"model.backbone.strides is {list(backbone.strides)}")
    if backbone.norm != "frozen-batch":
        faults.append("model.backbone.norm is group (trained without pretrained weights)")
    return faults


def _plain(name: str) -> str:
    """Return the name of a network without the tag that says which weights."""
    return name.partition(".")[0]


def _differing(config: Any, expected: Mapping[str, object], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{key} is {_shown(getattr(config, key))}, not {_shown(value)}"
        for key, value in expected.items()
        if getattr(config, key) != value
    ]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _backbone(config: Any, faults: list[str]) -> str:
    """Return the ResNet's name in torchvision, or add to the faults why it has none."""
    where = "backbone_config"
    if config.model_type == "timm_backbone":
        name = _plain(config.backbone)
        if name not in RESNETS.values():
            faults.append(f"{where}.backbone is {name}, not one of {', '.join(RESNETS.values())}")
        if tuple(config.out_indices) != (2, 3, 4):
            faults.append(f"{where}.out_indices is {list(config.out_indices)}, not [2, 3, 4]")
        return name
    if config.model_type != "resnet":
        faults.append(f"{where}.model_type is {config.model_type}, not resnet or timm_backbone")
        return ""
    faults += _differing(config, _RESNET, f"{where}.")
    wide = config.layer_type == "bottleneck"
    known = RESNETS.get((wide, tuple(config.depths)))
    if known is None or list(config.hidden_sizes) != [(WIDENED if wide else 1) * width for width in WIDTHS]:
        faults.append(
            f"{where} has {config.layer_type} blocks {list(config.depths)} of {list(config.hidden_sizes)} channels, "
            f"which is none of {', '.join(RESNETS.values())}"
        )
    if tuple(config.out_features) != STAGES:
        faults.append(f"{where}.out_features is {_quoted(config.out_features)}, not {_quoted(STAGES)}")
    return known or ""


def _quoted(names: Iterable[str]) -> str:
    return f"[{', '.join(names)}]"
