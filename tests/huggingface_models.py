"""Small detectors of ``transformers`` with random weights, one of each family, built without a download."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_detr.structures import Images, Target

CLASSES, QUERIES, WIDTH, FFN, LAYERS, HEADS = 3, 20, 64, 128, 3, 4
SIZES = {"rf_detr": 112}
SIZE = 128
"""Pixels of a side that a model takes; ``SIZES`` has those that differ."""

_PLAIN = {
    "encoder_layers": 1,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
}
_REAL_TIME = {
    **_PLAIN,
    "d_model": WIDTH,
    "encoder_hidden_dim": WIDTH,
    "encoder_in_channels": [32, 48, 64],
    "decoder_in_channels": [WIDTH] * 3,
    "num_denoising": 10,
}
_GROUPED = {
    "d_model": WIDTH,
    "decoder_ffn_dim": FFN,
    "decoder_layers": LAYERS,
    "decoder_self_attention_heads": HEADS,
    "decoder_cross_attention_heads": 2 * HEADS,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "group_detr": 4,
    "c2f_num_blocks": 1,
}
_STAGES = ["stage2", "stage3", "stage4"]


def _resnet(*stages: str, name: str = "ResNetConfig", width: int = 8) -> Any:
    import transformers

    sizes = {"embedding_size": width, "hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "layer_type": "basic"}
    return getattr(transformers, name)(**sizes, out_features=list(stages))


def _rt_resnet() -> Any:
    return _resnet(*_STAGES, name="RTDetrResNetConfig", width=16)


def _hgnet() -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        embedding_size=8,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1] * 4,
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 32, 48],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[16, 32, 48, 64],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        out_features=_STAGES,
    )


def _lw(**changes: Any) -> Any:
    from transformers import LwDetrConfig, LwDetrViTConfig

    backbone = LwDetrViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        image_size=SIZE,
        pretrain_image_size=SIZE,
        patch_size=16,
        window_block_indices=[1],
        out_indices=[1, 2, 3],
        num_windows=4,
    )
    return LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **{**_GROUPED, **changes})


def _rf(**changes: Any) -> Any:
    from transformers import RfDetrConfig
    from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

    backbone = RfDetrDinov2Config(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        image_size=SIZES["rf_detr"],
        patch_size=14,
        num_windows=2,
        out_features=["stage1", "stage2", "stage3"],
    )
    return RfDetrConfig(backbone_config=backbone, **{**_GROUPED, **changes})


def _config(name: str, width: str, backbone: Callable[[], Any], **fixed: Any) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        import transformers

        given = {"auxiliary_loss": True, width: WIDTH, **fixed, **changes}
        return getattr(transformers, name)(backbone_config=backbone(), **given)

    return make


CONFIGS: dict[str, Callable[..., Any]] = {
    "conditional_detr": _config("ConditionalDetrConfig", "d_model", lambda: _resnet("stage4"), **_PLAIN),
    "dab-detr": _config("DabDetrConfig", "hidden_size", lambda: _resnet("stage4"), **_PLAIN),
    "deformable_detr": _config(
        "DeformableDetrConfig",
        "d_model",
        lambda: _resnet(*_STAGES),
        **_PLAIN,
        two_stage=True,
        with_box_refine=True,
        two_stage_num_proposals=QUERIES,
        disable_custom_kernels=True,
    ),
    "rt_detr": _config("RTDetrConfig", "d_model", _rt_resnet, **_REAL_TIME),
    "rt_detr_v2": _config("RTDetrV2Config", "d_model", _rt_resnet, **_REAL_TIME),
    "d_fine": _config("DFineConfig", "d_model", _hgnet, **_REAL_TIME),
    "lw_detr": _lw,
    "rf_detr": _rf,
}
"""``model_type`` -> makes a config; keyword arguments change it."""


def build(kind: str, **changes: Any) -> Any:
    """Return a model without dropout whose weights are all moved, so that no head is zero and no two are alike."""
    from transformers import AutoModelForObjectDetection

    config = CONFIGS[kind](**changes)
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model: nn.Module = AutoModelForObjectDetection.from_config(config)
    model.requires_grad_(True)  # as `from_pretrained` gives it
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.004 if parameter.dim() > 1 else 0.02
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model


def processor(kind: str) -> dict[str, Any]:
    """Return what the file of a family's image processor holds, at the size of the small models."""
    side, real_time = size_of(kind), kind in ("rt_detr", "rt_detr_v2", "d_fine")
    square = real_time or kind in ("lw_detr", "rf_detr")
    return {
        "image_processor_type": "RTDetrImageProcessor" if real_time else "DeformableDetrImageProcessor",
        "size": {"height": side, "width": side} if square else {"shortest_edge": side, "longest_edge": side + 32},
        "do_normalize": not real_time,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": not square,
    }


def save(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a model and its image processor as a folder; return it."""
    build(kind, **changes).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor(kind)))
    return folder


def own_loss(model: Any, images: Images, targets: Sequence[Target]) -> Tensor:
    """Return the loss that a model computes by itself."""
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    loss: Tensor = model(pixel_values=images.pixels, pixel_mask=(~images.padding).long(), labels=labels).loss
    return loss


def size_of(kind: str) -> int:
    """Return the pixels of a side of an image for a family."""
    return SIZES.get(kind, SIZE)
