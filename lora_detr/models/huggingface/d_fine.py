"""D-FINE: each layer refines distributions of the distances to the four sides; classes are corrected by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_detr.models.huggingface.family import Classes, Defaults, layers_of, prediction
from lora_detr.models.huggingface.feed_forward import FeedForwardView
from lora_detr.models.huggingface.recording import Recording
from lora_detr.models.huggingface.rt_detr import behind_denoising, largest_stride
from lora_detr.structures import Prediction

# The decoder bounds what it norms, for half precision.
LIMIT = 65504.0


class DFine(Defaults):
    """``d_fine``.

    A layer refines three things of the layer before: the box of the first stage stays, the distributions are added to,
    the hidden state is added before the box head. A reference is all three, [B, Q, 4 + 4 (bins + 1) + D].
    """

    recipe = "rt-detr"
    ignores_mask = True

    def size_multiple(self, config: Mapping[str, Any]) -> int:
        """Return the largest stride of the encoder's maps."""
        return largest_stride(config)

    def attach(self, model: Any, recording: Recording) -> None:
        """Keep what the box heads add: the model's output has the sums in training only."""
        for i, head in enumerate(model.model.decoder.bbox_embed):
            recording.keep_output(head, "added", i)

    def ffn(self, layer: Any) -> FeedForwardView:
        """Return the feed-forward network of a decoder layer, which has no dropout."""
        first, second = layer.mlp.layers
        return FeedForwardView(layer, first, second, layer.final_layer_norm, layer.mlp.act, limit=LIMIT)

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer that decoder layer ``layer`` uses."""
        return cast(nn.Linear, model.model.decoder.class_embed[layer])

    def queries(self, model: Any, output: Any) -> slice:
        """Return those behind the denoising queries."""
        return behind_denoising(output)

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return box, distributions and hidden state that each layer starts from, without a gradient."""
        box = output.initial_reference_points[:, 0, queries].detach()
        distances = hidden = None
        found = []
        for i in range(len(layers_of(model))):
            state = recording.value("hidden", i)[:, queries].detach()
            added = recording.value("added", i)[:, queries].detach()
            if distances is None or hidden is None:
                distances, hidden = torch.zeros_like(added), torch.zeros_like(state)
            found.append(torch.cat((box, distances, hidden), -1))
            distances, hidden = added + distances, state
        return found

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads of a layer."""
        from transformers.models.d_fine.modeling_d_fine import distance2bbox, weighting_function

        decoder = model.model.decoder
        width = hidden.shape[-1]
        box, before, last = reference.split((4, reference.shape[-1] - 4 - width, width), -1)
        distances = decoder.bbox_embed[layer](hidden + last) + before  # [..., B, Q, 4 (bins + 1)]
        # Its modules take three axes.
        flat = distances.flatten(0, -3)
        project = weighting_function(decoder.max_num_bins, decoder.up, decoder.reg_scale)
        sides = decoder.integral(flat, project).reshape(*distances.shape[:-1], 4)
        scores = classes(hidden)
        logits = decoder.lqe_layers[layer](scores.flatten(0, -3), flat).reshape(scores.shape)
        return prediction(logits, distance2bbox(box, sides, decoder.reg_scale))
