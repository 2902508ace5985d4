"""RT-DETR and RT-DETRv2: a pair of heads for each layer, within the decoder; denoising queries stand first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from lora_detr.models.huggingface.family import Classes, DetrFeedForward, NoHooks, prediction, refined
from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import Prediction


def behind_denoising(output: Any) -> slice:
    """Return the queries behind those of denoising, whose number depends on the batch; all of them without any."""
    split = getattr(output, "denoising_meta_values", None)
    return slice(split["dn_num_split"][0], None) if split else slice(None)


def largest_stride(config: Mapping[str, Any]) -> int:
    """Return the stride of the coarsest map that the encoder is given."""
    return max(config.get("feat_strides") or (32,))


class RTDetr(DetrFeedForward, NoHooks):
    """``rt_detr`` and ``rt_detr_v2``."""

    recipe = "rt-detr"
    ignores_mask = True

    def size_multiple(self, config: Mapping[str, Any]) -> int:
        """Return the largest stride of the encoder's maps."""
        return largest_stride(config)

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer that decoder layer ``layer`` uses."""
        return cast(nn.Linear, model.model.decoder.class_embed[layer])

    def queries(self, model: Any, output: Any) -> slice:
        """Return those behind the denoising queries."""
        return behind_denoising(output)

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the proposals' boxes, then those of the layer before, without a gradient."""
        boxes = output.intermediate_reference_points.detach()[:, :, queries]
        first = output.init_reference_points.sigmoid().detach()[:, queries]
        return [first, *(boxes[:, i] for i in range(boxes.shape[1] - 1))]

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads of a layer."""
        decoder = model.model.decoder
        logits = classes(hidden)
        return prediction(logits, refined(reference, decoder.bbox_embed[layer](hidden)))
