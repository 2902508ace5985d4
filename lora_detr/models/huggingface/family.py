"""What differs between families of detectors: where the parts are, which queries count, how heads are applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn

from lora_detr.models.huggingface.feed_forward import FeedForwardView
from lora_detr.models.huggingface.recording import Recording
from lora_detr.ops.positional import inverse_sigmoid
from lora_detr.structures import Prediction

Classes = Callable[[Tensor], Tensor]

# Of every inverse sigmoid in transformers.
EPS = 1e-5


class Family(Protocol):
    """The rule of one family. Its methods are given the model, so that copies of a detector share nothing.

    A ``reference`` is [B, Q, R]: whatever the box head of a layer refines, its first numbers the box or the point.
    """

    recipe: str
    """File of ``configs/huggingface`` with the settings of a fine-tuning."""

    ignores_mask: bool
    """Whether padding is seen as image, so that images must be square."""

    supervises_all_layers_freely: bool
    """Whether ``auxiliary_loss`` may be switched on without a change of what the model predicts."""

    def size_multiple(self, config: Mapping[str, Any]) -> int:
        """Return what sides of images must be multiples of."""

    def queries_key(self, config: Mapping[str, Any]) -> str:
        """Return the key of the config that has the number of queries."""

    def idle(self, model: Any) -> list[nn.Parameter]:
        """Return the parameters that no loss of the model reaches."""

    def attach(self, model: Any, recording: Recording) -> None:
        """Hook what ``references`` needs beyond the layers' own tensors."""

    def ffn(self, layer: Any) -> FeedForwardView:
        """Return the feed-forward network of a decoder layer."""

    def class_layer(self, model: Any, layer: int) -> nn.Linear:
        """Return the class layer that decoder layer ``layer`` uses."""

    def queries(self, model: Any, output: Any) -> slice:
        """Return which of the decoder's queries inference would keep; training may decode others beside them."""

    def references(self, model: Any, output: Any, recording: Recording, queries: slice) -> list[Tensor]:
        """Return the reference of each layer, [B, Q, R]."""

    def predict(self, model: Any, layer: int, hidden: Tensor, reference: Tensor, classes: Classes) -> Prediction:
        """Apply the heads of a layer to hidden states [..., B, Q, D]; ``classes`` gives logits."""


def layers_of(model: Any) -> nn.ModuleList:
    """Return the decoder layers."""
    return cast(nn.ModuleList, model.model.decoder.layers)


class Defaults:
    """Mixin: what holds for most families."""

    ignores_mask = False
    supervises_all_layers_freely = True

    def size_multiple(self, config: Mapping[str, Any]) -> int:
        """Return 1: images of any size."""
        return 1

    def queries_key(self, config: Mapping[str, Any]) -> str:
        """Return the key of the config that has the number of queries."""
        return "num_queries"

    def idle(self, model: Any) -> list[nn.Parameter]:
        """Return none: every parameter is trained."""
        return []


class DetrFeedForward(Defaults):
    """Mixin: fc1 and fc2 in ``mlp``, both dropouts there; the norm in the layer, or in ``mlp`` too."""

    def ffn(self, layer: Any) -> FeedForwardView:
        """Return the feed-forward network of a decoder layer."""
        mlp = layer.mlp
        norm = getattr(mlp, "final_layer_norm", None) or layer.final_layer_norm
        return FeedForwardView(layer, mlp.fc1, mlp.fc2, norm, mlp.activation_fn, mlp.activation_dropout, mlp.dropout)


class NoHooks:
    """Mixin of families whose references are in the model's output."""

    def attach(self, model: Any, recording: Recording) -> None:
        """Hook nothing."""


class AllQueries:
    """Mixin of families that decode the same queries in training as in inference."""

    def queries(self, model: Any, output: Any) -> slice:
        """Return all of them."""
        return slice(None)


def refined(reference: Tensor, change: Tensor) -> Tensor:
    """Return the boxes that box logits [..., Q, 4] make of references [B, Q, 4], or of points [B, Q, 2]."""
    moved = change.clone()
    moved[..., : reference.shape[-1]] += inverse_sigmoid(reference, EPS)
    return moved.sigmoid()


def prediction(logits: Tensor, boxes: Tensor) -> Prediction:
    """Return logits and boxes in float32."""
    return Prediction(logits.float(), boxes.float())
