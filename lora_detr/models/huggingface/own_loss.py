"""The loss of a model of ``transformers``, put off until the forward pass is over, and its terms by their places.

Computed later, it lies outside of autocast, in float32 as all losses here, and a fault in it can be explained. It stays
the model's own: the function is called with what the model would have given it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lora_detr.models.huggingface.recording import Recording
from lora_detr.structures import OwnLoss, OwnTerm

KINDS = {"ce": "class", "vfl": "class", "bbox": "l1", "giou": "giou", "fgl": "fgl", "ddf": "ddf"}
_NAME = re.compile(r"loss_(?P<kind>[a-z]+)(_(?P<group>aux_|dn_)?(?P<place>\d+))?(?P<encoder>_enc)?")

# Where the config has the weight of a term. RT-DETR and its kin report terms that are weighted already.
_WEIGHTED = "weight_loss_{}"
_COEFFICIENTS = {"ce": "class_loss_coefficient", "bbox": "bbox_loss_coefficient", "giou": "giou_loss_coefficient"}
# These two have the first coefficient in their config, and the others' loss does not read it.
_READS_CLASS_COEFFICIENT = ("lw_detr", "rf_detr")


class PutOff:
    """Stands in for a model's loss function and keeps what it is called with.

    Args:
        recording: where to.
    """

    NAME = "loss"

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def __call__(self, logits: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, dict[str, Tensor], None]:
        """Keep the arguments; the loss is 0 for now."""
        self.recording.put(self.NAME, 0, ((logits, *arguments), named))
        return logits.new_zeros(()), {}, None


def compute(function: Any, config: Any, call: tuple[tuple[Any, ...], Mapping[str, Any]]) -> OwnLoss:
    """Call a model's loss function in float32.

    Args:
        function: of the model.
        config: of the model.
        call: what ``PutOff`` kept.
    """
    arguments, named = call
    with torch.autocast(arguments[0].device.type, enabled=False):
        total, terms, _ = function(*map(_single, arguments), **{name: _single(value) for name, value in named.items()})
    found = [_term(name, value, config) for name, value in terms.items()]
    return OwnLoss(total, tuple(term for term in found if term is not None))


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _term(name: str, value: Tensor, config: Any) -> OwnTerm | None:
    """Return a term by its place, before weighting; None for what is counted but not part of the loss."""
    match = _NAME.fullmatch(name)
    if match is None or match["kind"] not in KINDS:
        return None
    source, layer = _place(match, config)
    kind, weight = match["kind"], _weight(match["kind"], config)
    is_weighted = hasattr(config, _WEIGHTED.format(kind)) and weight != 0
    return OwnTerm(source, layer, KINDS[kind], value / weight if is_weighted else value, weight)


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weight of each kind of loss that every decoder layer has, from the content of a ``config.json``."""
    named = SimpleNamespace(**config)
    kinds = ("vfl" if hasattr(named, _WEIGHTED.format("vfl")) else "ce", "bbox", "giou")
    return {KINDS[kind]: _weight(kind, named) for kind in kinds}


def _weight(kind: str, config: Any) -> float:
    """Return the weight of a term in the total."""
    weighted = getattr(config, _WEIGHTED.format(kind), None)
    if weighted is not None:
        return float(weighted)
    reads = kind != "ce" or config.model_type in _READS_CLASS_COEFFICIENT
    return float(getattr(config, _COEFFICIENTS[kind])) if reads else 1.0


def _place(match: re.Match[str], config: Any) -> tuple[str, int | None]:
    """Return source and layer of a term; ``NAME_start`` is what the first decoder layer starts from.

    Terms without a number are those of the last layer. With ``aux_``, the one behind all layers but the last is the
    encoder's. D-FINE counts from the predictions that its first layer starts from.
    """
    last = int(config.decoder_layers) - 1
    if match["encoder"]:
        return "encoder", None
    if match["place"] is None:
        return "primary", last
    place = int(match["place"])
    if match["group"] == "aux_" and place == last:
        return "encoder", None
    source = "denoising" if match["group"] == "dn_" else "primary"
    layer = place - (config.model_type == "d_fine")
    return (source, layer) if layer >= 0 else (f"{source}_start", None)
