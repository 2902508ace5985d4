"""Which detectors of ``transformers`` are ours too, which of ours are theirs, and why others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers

from lora_detr.checkpoints.huggingface.system import config_of, settings_of
from lora_detr.config.load import load_config
from lora_detr.data.coco.categories import CategoryMap
from lora_detr.errors import CheckpointError
from lora_detr.models.backbones import TimmConfig
from lora_detr.models.huggingface.pretrained import Pretrained, pretrained_of
from lora_detr.recipe.run_config import RunConfig
from tests import huggingface_models

NAMES = ("cell", "plate", "rest")
CLASSES = CategoryMap((7, 3, 12), NAMES)
STAGES = ["stage2", "stage3", "stage4"]


def resnet(**changes: Any) -> Any:
    return transformers.ResNetConfig(**{"out_features": STAGES, **changes})


def settings(processor: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    return settings_of(folder(processor, **changes), CLASSES, None)


def folder(processor: dict[str, Any] | None = None, **changes: Any) -> Pretrained:
    given = {"two_stage": True, "with_box_refine": True, "backbone_config": resnet(), **changes}
    config = transformers.DeformableDetrConfig(**given, id2label=dict(enumerate(NAMES)))
    return pretrained_of("folder", config, processor)


def test_sizes_of_a_folder_become_settings() -> None:
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "num_feature_levels": 5, "dropout": 0.2}
    both = {"ffn_dim": 48, "attention_heads": 4, "n_points": 3}
    each = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in both.items()}
    model = settings(two_stage_num_proposals=77, num_queries=5, **sizes, **each).model
    assert (model.kind, model.backbone.name, model.num_queries, model.hidden_dim) == ("deformable", "resnet50", 77, 64)
    assert (model.encoder_layers, model.decoder_layers, model.levels, model.dropout) == (2, 3, 5, 0.2)
    assert (model.ffn_dim, model.heads, model.points) == (48, 4, 3)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"two_stage": False}, "two_stage is false, not true"),
        ({"two_stage": False, "with_box_refine": False}, "two_stage is false, not true"),
        ({"activation_function": "gelu"}, "activation_function is gelu, not relu"),
        ({"position_embedding_type": "learned"}, "position_embedding_type is learned, not sine"),
        ({"decoder_ffn_dim": 512}, "encoder_ffn_dim is 1024, but decoder_ffn_dim 512"),
        ({"encoder_n_points": 2}, "encoder_n_points is 2, but decoder_n_points 4"),
        ({"dilation": True}, "dilation is true"),
        ({"backbone_config": resnet(hidden_act="gelu")}, "backbone_config.hidden_act is gelu, not relu"),
        (
            {"backbone_config": resnet(downsample_in_bottleneck=True)},
            "backbone_config.downsample_in_bottleneck is true, not false",
        ),
        (
            {"backbone_config": resnet(depths=[1] * 4)},
            "bottleneck blocks [1, 1, 1, 1] of [256, 512,",
        ),
        (
            {"backbone_config": resnet(out_features=["stage4"])},
            "out_features is [stage4], not [stage2,",
        ),
        (
            {"backbone_config": transformers.TimmBackboneConfig(backbone="resnet10t", out_indices=[2, 3, 4])},
            "backbone_config.backbone is resnet10t, not one of resnet18",
        ),
        (
            {"backbone_config": transformers.SwinConfig()},
            "model_type is swin, not resnet or timm_backbone",
        ),
    ],
)
def test_what_ours_has_not_is_refused_by_its_key(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        settings(**changes)
    assert (caught.value.code, caught.value.exit_code) == ("K08", 4)
    assert caught.value.message.startswith("hf:folder: cannot be expressed: ")
    assert found in caught.value.message
    assert "two-stage with box refinement, on a ResNet" in caught.value.remedy


def test_other_families_are_refused_with_what_they_can_do() -> None:
    other = pretrained_of("folder", huggingface_models.CONFIGS["rt_detr"](), None)
    with pytest.raises(CheckpointError, match="is a rt_detr; only deformable_detr") as caught:
        settings_of(other, CLASSES, None)
    assert "loradetr train --baseline hf:folder" in caught.value.remedy


def test_sizes_that_no_model_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"sizes that make no model: .*`model\.hidden_dim`"):
        settings(d_model=48)


def test_all_faults_are_listed_together() -> None:
    with pytest.raises(CheckpointError, match=r"two_stage is .*; activation_function is .*; dilation is"):
        settings(two_stage=False, activation_function="gelu", dilation=True)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({}, (800, 1333, False)),
        ({"size": {"shortest_edge": 640, "longest_edge": 900}}, (640, 900, False)),
        ({"size": 640, "max_size": 900}, (640, 900, False)),
        ({"size": {"height": 640, "width": 640}}, (640, 1333, True)),
    ],
)
def test_sizes_of_images_become_settings(processor: dict[str, Any], expected: tuple[int, int, bool]) -> None:
    how = settings(processor).data.evaluation
    assert (how.size, how.max_size, how.square) == expected


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
        ({"do_normalize": False}, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    ],
)
def test_another_normalisation_is_kept_there_and_back(processor: dict[str, Any], expected: tuple[Any, Any]) -> None:
    config = settings(processor)
    assert isinstance(config.model.backbone, TimmConfig)
    deployment = config.deployment(CLASSES)
    assert (deployment.mean, deployment.std) == expected
    again = pretrained_of("again", config_of(deployment, Path("run")), processor)
    assert settings_of(again, CLASSES, None) == config


@pytest.mark.parametrize(
    ("preset", "overrides", "found"),
    [
        ("deformable-pp", (), "model.mixed_selection is true"),
        ("ms-detr", (), "model.kind is ms-detr"),
        ("relation", (), "model.kind is relation"),
        ("relation-swin-l", (), "model.backbone.name is swin_large_patch4_window7_224"),
        ("deformable", ("model.backbone.norm=group",), "model.backbone.norm is group"),
    ],
)
def test_what_transformers_has_not_is_refused(preset: str, overrides: tuple[str, ...], found: str) -> None:
    config = load_config(RunConfig, preset=preset, overrides=overrides).config
    with pytest.raises(CheckpointError, match="run: transformers has no such detector") as caught:
        config_of(config.deployment(CLASSES), Path("run"))
    assert caught.value.code == "K08"
    assert found in caught.value.message
