"""Deformable DETR: a pair of heads for each layer; references of 2 or 4 numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from lora_detr.models.huggingface.family import AllQueries, Classes, DetrFeedForward, NoHooks, prediction, refined
from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import Prediction


class Deformable(DetrFeedForward, NoHooks, AllQueries):
    """``deformable_detr``, one-stage, with iterative refinement, and two-stage."""

    recipe = "detr"

    def queries_key(self, config: Mapping[str, Any]) -> str:
        """Return the key of the config that has the number of queries: with two stages, that of the proposals."""
        return "two_stage_num_proposals" if config.get("two_stage") else "num_queries"

    def idle(self, model: Any) -> list[nn.Parameter]:
        """Return those of the proposals, which the loss leaves out."""
        if not model.config.two_stage:
            return []
        decoder, own = model.model.decoder, model.model
        parts = decoder.class_embed[-1], decoder.bbox_embed[-1], own.enc_output, own.enc_output_norm
        return [parameter for part in parts for parameter in part.parameters()]

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer that decoder layer ``layer`` uses."""
        return cast(nn.Linear, model.class_embed[layer])

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the initial references, then those that the layer before made; points [B, Q, 2] without refinement."""
        made = output.intermediate_reference_points
        return [output.init_reference_points, *(made[:, i] for i in range(made.shape[1] - 1))]

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads of a layer."""
        logits = classes(hidden)
        return prediction(logits, refined(reference, model.bbox_embed[layer](hidden)))
