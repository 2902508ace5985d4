"""DAB-DETR: one pair of heads behind a norm that all layers share; the reference is a box."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from lora_detr.models.huggingface.family import AllQueries, Classes, layers_of, prediction, refined
from lora_detr.models.huggingface.feed_forward import FeedForwardView
from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import Prediction


class Dab(AllQueries):
    """``dab-detr``."""

    def attach(self, model: Any, recording: Recording) -> None:
        """Keep the decoder's output: the model's own lacks the references."""
        recording.keep_output(model.model.decoder, "decoder")

    def ffn(self, layer: Any) -> FeedForwardView:
        """Return the feed-forward network of a decoder layer; its norm is in ``mlp``, its activation is learned."""
        mlp = layer.mlp
        return FeedForwardView(
            layer, mlp.fc1, mlp.fc2, mlp.final_layer_norm, mlp.activation_fn, mlp.activation_dropout, mlp.dropout
        )

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer, the same for all layers."""
        return cast(nn.Linear, model.class_embed)

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the box of each query at each layer."""
        boxes = recording.value("decoder").reference_points
        return [boxes[i] for i in range(len(layers_of(model)))]

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes | None) -> Prediction:
        """Apply the heads."""
        normed = model.model.decoder.layernorm(hidden)
        return prediction((classes or model.class_embed)(normed), refined(reference, model.bbox_predictor(normed)))
