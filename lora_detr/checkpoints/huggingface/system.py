"""A two-stage Deformable-DETR of ``transformers`` in our settings, and ours in its config; else why it has none."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lora_detr.checkpoints.official.classes import COCO_MAP, categories_in
from lora_detr.checkpoints.official.system import RESNETS
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.data.transforms import EvalTransformConfig
from lora_detr.errors import CheckpointError, ConfigError, listed
from lora_detr.json_value import JSON
from lora_detr.models import DeformableDetrConfig, HuggingFaceConfig
from lora_detr.models.backbones import BackboneConfig
from lora_detr.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD, STRIDES
from lora_detr.models.backbones.weights import NONE
from lora_detr.models.huggingface.pretrained import CATEGORY_IDS
from lora_detr.models.huggingface.versions import PREFIX
from lora_detr.recipe.deployment import DeploymentConfig
from lora_detr.recipe.run_config import RunConfig

KIND, PRESET = "deformable_detr", "deformable"
SHOWN = 5
# Width of the stem, and of the four stages; three convolutions in a block give four times as many channels.
STEM, WIDTHS, WIDENED = 64, (64, 128, 256, 512), 4
STAGES = ("stage2", "stage3", "stage4")
_Statistics: TypeAlias = tuple[Sequence[float], Sequence[float]]
# No limit of the longer side, for a processor that must have one.
UNLIMITED = 100_000

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


@dataclass(frozen=True)
class Published:
    """A folder, or a name on the hub.

    Attributes:
        source: which.
        config: of ``transformers``.
        names: of its classes, by label.
    """

    source: str
    config: Any
    names: tuple[str, ...]


def settings_of(
    pretrained: Published, processor: Mapping[str, Any], categories: CategoryMap, data: Path | None
) -> RunConfig:
    """Return the settings of a run whose detector is that of a folder.

    Args:
        pretrained: the folder.
        processor: its ``preprocessor_config.json``; where it lacks a value, it is the family's default.
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
    statistics, size = _preparation(processor, faults)
    if faults:
        raise CheckpointError(
            f"{PREFIX}{pretrained.source}: cannot be expressed: {'; '.join(faults)}",
            "ours is two-stage with box refinement, on a ResNet; train others as they are, by --baseline hf:...",
            code="K08",
        )
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
        **{f"data.evaluation.{name}": value for name, value in size.items()},
    }
    if statistics != (IMAGENET_MEAN, IMAGENET_STD):
        mean, std = (list[JSON](values) for values in statistics)
        wanted["model.backbone"] = {
            "kind": "timm",
            "name": backbone,
            "weights": NONE,
            "norm": "frozen-batch",
            "freeze_stages": 1,
            "mean": mean,
            "std": std,
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


def categories_of(pretrained: Published, data: Path | None) -> tuple[CategoryMap, str]:
    """Return the labels of a folder, and in words where their ids come from.

    Ids are those that our ``convert`` or ``train`` left in the config, else those of the data set's categories of the
    same names, else the labels themselves.

    Raises:
        CheckpointError: the ids in the config cannot be used; K08, the data set has not all of the names.
        LoraDetrError: the data cannot be read.
    """
    names, source = pretrained.names, f"{PREFIX}{pretrained.source}"
    stored = getattr(pretrained.config, CATEGORY_IDS, None)
    if stored is not None:
        try:
            return CategoryMap.from_json({"ids": stored, "names": names}), f"ids from {CATEGORY_IDS} of the config"
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {CATEGORY_IDS}: {error.message}", "correct or remove the key") from error
    if names == COCO_MAP.names:
        return COCO_MAP, "labels are COCO's ids"
    if data is None:
        return CategoryMap(tuple(range(len(names))), names), "labels serve as ids; --data gives a data set's own"
    ids = {name: i for i, name in categories_in(data).items()}
    unknown = [name for name in names if name not in ids]
    if unknown or len(set(names)) < len(names):
        fault = f"{data} has no category {listed(unknown, SHOWN)}" if unknown else "some classes share a name"
        raise CheckpointError(
            f"{source}: {fault}", "give the data set that it was trained on, or omit --data", code="K08"
        )
    return CategoryMap(tuple(ids[name] for name in names), names), f"ids from {data}"


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
    names = deployment.category_names
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
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    setattr(config, CATEGORY_IDS, list(deployment.category_ids))
    return config


def processor_of(deployment: DeploymentConfig) -> Any:
    """Return what prepares images for ``transformers``."""
    transformers: Any = importlib.import_module("transformers")
    how = deployment.transform
    limited = {"shortest_edge": how.size, "longest_edge": how.max_size or UNLIMITED}
    return transformers.DeformableDetrImageProcessor(
        size={"height": how.size, "width": how.size} if how.square else limited,
        image_mean=list(deployment.mean),
        image_std=list(deployment.std),
    )


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


def _preparation(processor: Mapping[str, Any], faults: list[str]) -> tuple[_Statistics, dict[str, JSON]]:
    """Return mean and standard deviation for pixels in [0, 1], and settings of ``data.evaluation``."""
    where = "preprocessor_config.json"
    default = EvalTransformConfig()
    try:
        factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
        if abs(factor * 255 - 1) > 1e-6:
            faults.append(f"{where}: pixels are multiplied by {factor:g}, not 1/255")
        statistics: _Statistics = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if processor.get("do_normalize", True):
            statistics = (
                tuple(map(float, processor.get("image_mean", IMAGENET_MEAN))),
                tuple(map(float, processor.get("image_std", IMAGENET_STD))),
            )
        size = processor.get("size", {"shortest_edge": default.size, "longest_edge": default.max_size})
        if isinstance(size, int):  # of old versions
            size = {"shortest_edge": size, "longest_edge": processor.get("max_size", default.max_size)}
        if {"shortest_edge", "longest_edge"} <= size.keys():
            longest = size["longest_edge"]
            return statistics, {"size": size["shortest_edge"], "max_size": None if longest == UNLIMITED else longest}
        if size.keys() == {"height", "width"} and size["height"] == size["width"]:
            return statistics, {"size": size["height"], "square": True}
        faults.append(f"{where}: size is {json.dumps(size)}, not a shortest and longest edge, or a square")
        return statistics, {}
    except (AttributeError, TypeError, ValueError) as error:
        faults.append(f"{where}: {error}")
        return (IMAGENET_MEAN, IMAGENET_STD), {}
