"""The adapter: a model of ``transformers`` as a ``Detector``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized

from lora_detr.models.huggingface.families import FAMILIES
from lora_detr.models.huggingface.family import Family, layers_of
from lora_detr.models.huggingface.feed_forward import FeedForwardView
from lora_detr.models.huggingface.own_loss import PutOff, compute
from lora_detr.models.huggingface.recording import Recording
from lora_detr.models.pixels import PixelNormalisation
from lora_detr.structures import DecoderLayerOutput, DetectorOutput, Images, OwnLoss, Prediction, Target


class _OnDemand(Prediction):
    """A prediction that is computed, without gradient, when somebody looks at it: training and inference never do."""

    _compute: Callable[[], Prediction]

    def __init__(self, compute: Callable[[], Prediction]) -> None:
        object.__setattr__(self, "_compute", compute)

    def __getattr__(self, name: str) -> Tensor:
        if name not in ("logits", "boxes"):
            raise AttributeError(name)
        with torch.no_grad():
            found = self._compute()
        for part in ("logits", "boxes"):
            object.__setattr__(self, part, getattr(found, part))
        value: Tensor = getattr(found, name)
        return value


class HuggingFaceDetector(nn.Module):
    """Publishes the decoder layers of an object detector of ``transformers``, whose forward pass stays its own.

    Args:
        model: of a family in ``FAMILIES``; it gets hooks, and no parameter. What its loss never reaches is frozen.
        normalisation: makes of pixels as read what the model takes; without it, pixels must be float.
        has_frozen_norms: whether its batch norms keep weights and statistics.
    """

    def __init__(
        self, model: nn.Module, normalisation: PixelNormalisation | None = None, has_frozen_norms: bool = False
    ) -> None:
        super().__init__()
        own: Any = model
        self.normalisation = normalisation
        self.model = own
        self.has_frozen_norms = has_frozen_norms
        idle = self.family.idle(own)
        frozen = [p for norm in self._norms() for p in norm.parameters()] if has_frozen_norms else []
        for parameter in (*idle, *frozen):
            parameter.requires_grad_(False)
        self.recording = Recording()
        for i, layer in enumerate(layers_of(model)):
            first = self.family.ffn(layer).linear1
            self.recording.keep_input(first, "ffn_input", i)
            self.recording.keep_output(first, "ffn_hidden", i)
            self.recording.keep_output(layer, "hidden", i)
        self.family.attach(model, self.recording)
        self.loss = own.loss_function
        own.loss_function = PutOff(self.recording)

    @property
    def family(self) -> Family:
        """The rule of its family."""
        return FAMILIES[self.model.config.model_type]

    @property
    def num_classes(self) -> int:
        """K, the width of the class heads."""
        return int(self.model.config.num_labels)

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(layers_of(self.model))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen batch norms stay in evaluation."""
        super().train(mode)
        if self.has_frozen_norms:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]

    def inference_state(self) -> dict[str, Tensor]:
        """Return the state dict."""
        return self.state_dict()

    def ffn(self, layer: int) -> FeedForwardView:
        """Return the feed-forward network of decoder layer ``layer``."""
        return self.family.ffn(layers_of(self.model)[layer])

    def class_layer(self, layer: int) -> nn.Linear:
        """Return the class layer of decoder layer ``layer``; several layers may share it."""
        return self.family.class_layer(self.model, layer)

    def class_layers(self) -> list[nn.Linear]:
        """Return the class layers of all decoder layers."""
        return [self.class_layer(layer) for layer in range(self.num_layers)]

    def predict(
        self, layer: int, hidden: Tensor, reference: Tensor, classes: Callable[[Tensor], Tensor] | None = None
    ) -> Prediction:
        """Apply the heads of a decoder layer.

        Args:
            layer: index from 0.
            hidden: [..., B, Q, D]; of branches with an axis in front.
            reference: [B, Q, R], as ``forward`` publishes it.
            classes: computes logits [..., Q, K] in place of the class layer.
        """
        return self.family.predict(self.model, layer, hidden, reference, classes or self.class_layer(layer))

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Detect objects in a padded batch.

        Args:
            images: the batch.
            targets: read by denoising queries and by the model's own loss, in training only.

        Returns:
            The primary queries' layers: neither those of denoising nor those of further groups. Predictions of all
            layers but the last have no gradient here: the model's own loss supervises them, which is put off until
            ``own_loss`` is called.
        """
        self.recording.clear()
        labels = None
        if self.training and targets is not None:
            labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
        pixels = images.pixels if self.normalisation is None else self.normalisation(images)
        output = self.model(pixel_values=pixels, pixel_mask=(~images.padding).long(), labels=labels)
        own_loss = None
        if labels is not None:
            own_loss = partial(self._own_loss, self.recording.value(PutOff.NAME))
        queries = self.family.queries(self.model, output)
        references = self.family.references(self.model, output, self.recording, queries)
        layers = []
        for i, reference in enumerate(references):
            kept = {name: self.recording.value(name, i)[:, queries] for name in ("ffn_input", "ffn_hidden", "hidden")}
            if i == self.num_layers - 1:
                prediction = Prediction(output.logits[:, queries].float(), output.pred_boxes[:, queries].float())
            else:
                prediction = _OnDemand(partial(self.predict, i, kept["hidden"], reference))
            # There is no cross-attention output to publish: kinds of branches that read it are not for these models.
            layers.append(
                DecoderLayerOutput(
                    kept["ffn_input"], kept["ffn_input"], kept["ffn_hidden"], kept["hidden"], reference, prediction
                )
            )
        self.recording.clear()
        memory = layers[0].hidden[:, :0]  # not every family gives what its encoder made, and no branch reads it
        return DetectorOutput(tuple(layers), None, references[0], memory, own_loss=own_loss)

    def _own_loss(self, call: tuple[tuple[Any, ...], dict[str, Any]]) -> OwnLoss:
        """Return the model's loss; of several processes, each gives every parameter a gradient.

        The embedding of denoising queries has none in a batch without objects. Other processes would wait for it.
        """
        loss = compute(self.loss, self.model.config, call)
        embedding = getattr(self.model.model, "denoising_class_embed", None)
        if embedding is None or not is_initialized():
            return loss
        return loss._replace(total=loss.total + 0 * embedding.weight.sum())
