"""LW-DETR and RF-DETR: one pair of heads behind a shared norm; groups of queries; boxes without a sigmoid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_detr.models.huggingface.family import Classes, Defaults, NoHooks, layers_of, prediction
from lora_detr.models.huggingface.feed_forward import FeedForwardView
from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import Prediction


class LwDetr(NoHooks, Defaults):
    """``lw_detr`` and ``rf_detr``. Of the groups that training decodes, the first is the one that inference keeps."""

    recipe = "detr"

    def size_multiple(self, config: Mapping[str, Any]) -> int:
        """Return the side of a window of the backbone, as far as its config tells."""
        backbone = config.get("backbone_config") or {}
        patch, windows = int(backbone.get("patch_size", 16)), int(backbone.get("num_windows", 4))
        # LW-DETR counts the windows of an image, RF-DETR those of a side.
        side = math.isqrt(windows) if backbone.get("model_type") == "lw_detr_vit" else windows
        return patch * side

    def idle(self, model: Any) -> list[nn.Parameter]:
        """Return the token for masked patches, which only the backbone's pretraining uses."""
        return [p for name, p in model.named_parameters() if name.endswith("embeddings.mask_token")]

    def ffn(self, layer: Any) -> FeedForwardView:
        """Return the feed-forward network of a decoder layer; the residual is added within ``mlp``."""
        mlp = layer.mlp
        return FeedForwardView(layer, mlp.fc1, mlp.fc2, layer.layer_norm, mlp.activation_fn, mlp.dropout, mlp.dropout)

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer, the same for all layers."""
        return cast(nn.Linear, model.class_embed)

    def queries(self, model: Any, output: Any) -> slice:
        """Return those of the first group."""
        return slice(0, model.config.num_queries)

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the proposals' boxes, the same for all layers; they carry a gradient."""
        return [output.init_reference_points[:, queries]] * len(layers_of(model))

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads: centres move by shares of the reference's size, sizes are multiplied by exp.

        Boxes may leave [0, 1].
        """
        normed = model.model.decoder.layernorm(hidden)
        change = model.bbox_embed(normed)
        centre = change[..., :2] * reference[..., 2:] + reference[..., :2]
        size = change[..., 2:].exp() * reference[..., 2:]
        return prediction(classes(normed), torch.cat((centre, size), -1))
