"""DAB-DETR: one pair of heads behind a norm that all layers share; the reference is a box."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from lora_detr.models.huggingface.family import AllQueries, Classes, DetrFeedForward, layers_of, prediction, refined
from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import Prediction


class Dab(DetrFeedForward, AllQueries):
    """``dab-detr``."""

    recipe = "detr"

    def attach(self, model: Any, recording: Recording) -> None:
        """Keep the decoder's output: the model's own lacks the references."""
        recording.keep_output(model.model.decoder, "decoder")

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer, the same for all layers."""
        return cast(nn.Linear, model.class_embed)

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the box of each query at each layer."""
        boxes = recording.value("decoder").reference_points
        return [boxes[i] for i in range(len(layers_of(model)))]

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads."""
        normed = model.model.decoder.layernorm(hidden)
        return prediction(classes(normed), refined(reference, model.bbox_predictor(normed)))
