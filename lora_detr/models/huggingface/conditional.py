"""Conditional DETR: one pair of heads behind a norm that all layers share; the reference is a point."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from lora_detr.models.huggingface.family import AllQueries, Classes, DetrFeedForward, layers_of, prediction, refined
from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import Prediction


class Conditional(DetrFeedForward, AllQueries):
    """``conditional_detr``."""

    recipe = "detr"
    supervises_all_layers_freely = False

    def attach(self, model: Any, recording: Recording) -> None:
        """Keep the decoder's output: the model's own lacks the reference points."""
        recording.keep_output(model.model.decoder, "decoder")

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer, the same for all layers."""
        return cast(nn.Linear, model.class_labels_classifier)

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the reference points [B, Q, 2], the same for all layers."""
        points = recording.value("decoder").reference_points.transpose(0, 1)
        return [points] * len(layers_of(model))

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads.

        With auxiliary losses the decoder hands the normed state on and norms once more at its end, so the state of the
        last layer is normed twice: the setting changes what a model predicts.
        """
        norm = model.model.decoder.layernorm
        normed = norm(hidden)
        if model.config.auxiliary_loss and layer == len(layers_of(model)) - 1:
            normed = norm(normed)
        logits = classes(normed)
        return prediction(logits, refined(reference, model.bbox_predictor(normed)))
