"""ResNet from torchvision, with frozen batch norm as detectors use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lora_detr.config.base import Strict
from lora_detr.config.statistics import Mean, Std
from lora_detr.models.backbones.folding import fold_frozen_norms
from lora_detr.models.backbones.normalisation import group_norm
from lora_detr.models.backbones.weights import IMAGENET, NONE, fetch, fit, read_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STRIDES = {8: "layer2", 16: "layer3", 32: "layer4"}


class ResNet(nn.Module):
    """Stages 2 to 4 of a torchvision ResNet, as maps of strides 8, 16 and 32.

    Args:
        name: ``resnet18`` to ``resnet152``.
        frozen_batch_norm: batch norm with fixed statistics and affine terms; else trainable GroupNorm.
        freeze_stem: the stem and the first stage take no gradient.
        channels_last: run convolutions in the channels-last memory format.
    """

    def __init__(self, name: str, frozen_batch_norm: bool, freeze_stem: bool, channels_last: bool) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if frozen_batch_norm else group_norm
        network = torchvision.models.get_model(name, weights=None, norm_layer=norm)
        self.body = nn.ModuleDict(
            {key: child for key, child in network.named_children() if key not in ("avgpool", "fc")}
        )
        wide = network.fc.in_features
        self.channels: tuple[int, ...] = (wide // 4, wide // 2, wide)
        self.strides: tuple[int, ...] = tuple(STRIDES)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if freeze_stem:
            for key in ("conv1", "bn1", "layer1"):
                self.body[key].requires_grad_(False)
        self.body.to(memory_format=self.memory_format)
        fold_frozen_norms(self)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return maps [B, C_i, H / s_i, W / s_i] of strides 8, 16, 32."""
        hidden = pixels.contiguous(memory_format=self.memory_format)
        maps = []
        for key, child in self.body.items():
            hidden = child(hidden)
            if key in STRIDES.values():
                maps.append(hidden)
        return tuple(maps)


class ResNetConfig(Strict):
    """A torchvision ResNet."""

    kind: Literal["resnet"] = "resnet"
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    """Which ResNet."""
    weights: str = IMAGENET
    """``imagenet`` (torchvision's first set, fetched once), ``none``, or the path of a file."""
    norm: Literal["auto", "frozen-batch", "group"] = "auto"
    """``auto``: frozen batch norm when there are weights, trainable GroupNorm when there are none."""
    freeze_stem: bool | None = None
    """Freeze stem and first stage; by default when there are weights."""
    channels_last: bool = False
    """Memory format of the convolutions."""

    @property
    def input_statistics(self) -> tuple[Mean, Std]:
        """Mean and standard deviation of the pixels that the weights expect."""
        return IMAGENET_MEAN, IMAGENET_STD

    @property
    def num_maps(self) -> int:
        """Number of feature maps."""
        return len(STRIDES)

    def resolved(self) -> ResNetConfig:
        """Return the same config: nothing here depends on what is installed."""
        return self

    def without_weights(self) -> ResNetConfig:
        """Return a config of the same architecture that names no weights."""
        pretrained = self.weights != NONE
        norm = ("frozen-batch" if pretrained else "group") if self.norm == "auto" else self.norm
        freeze_stem = pretrained if self.freeze_stem is None else self.freeze_stem
        return self.model_copy(update={"weights": NONE, "norm": norm, "freeze_stem": freeze_stem})

    def build(self, load_weights: bool) -> ResNet:
        """Build the network, with its weights if ``load_weights`` (a checkpoint brings its own).

        Raises:
            CheckpointError: weights cannot be fetched, read or fitted.
        """
        plain = self.without_weights()
        backbone = ResNet(self.name, plain.norm == "frozen-batch", bool(plain.freeze_stem), self.channels_last)
        if load_weights and self.weights != NONE:
            fit(
                backbone.body,
                self._state(),
                self.weights,
                lambda key: key.startswith("fc.") or key.endswith("num_batches_tracked"),
            )
        return backbone

    def _state(self) -> Mapping[str, Tensor]:
        if self.weights != IMAGENET:
            return read_state(Path(self.weights))
        weights = torchvision.models.get_model_weights(self.name)["IMAGENET1K_V1"]
        return fetch(
            f"{self.name} (torchvision)",
            weights.url,
            lambda: weights.get_state_dict(progress=False, check_hash=True),
        )
