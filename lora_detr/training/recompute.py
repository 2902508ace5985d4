"""Run layers again in the backward pass instead of keeping what they computed: less memory for more time.

Only a layer's inputs and outputs stay (Chen et al., 2016). The second pass draws the same random numbers as the first,
so losses and gradients are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_detr.errors import ConfigError
from lora_detr.models import TwoStageDetector
from lora_detr.models.relation_decoder import PositionRelation
from lora_detr.recipe.run_config import RecomputedPart

REMEDY = "leave backbone out of --recompute; encoder and decoder work with every backbone"


def recompute(detector: nn.Module, parts: Sequence[RecomputedPart]) -> None:
    """Let the layers of the named parts run again in backward, in place; names and values of parameters stay.

    Without gradients, as in evaluation, nothing changes.

    Args:
        detector: on its device or not.
        parts: may be empty or name a part twice.

    Raises:
        ConfigError: the backbone has no blocks that could run again.
    """
    for part in dict.fromkeys(parts):
        assert isinstance(detector, TwoStageDetector)  # settings of others name no part
        for layer in _layers(detector, part):
            layer.forward = _RunAgain(layer.forward)


class _RunAgain:
    """A forward pass that keeps its inputs only, and is run again when backward asks for the rest.

    Not a closure: a deep copy of a module must call the copy's own pass.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *inputs: object) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        versions = [tensor._version for tensor in tensors]
        outputs = checkpoint(self.forward, *inputs, use_reentrant=False)
        if [tensor._version for tensor in tensors] != versions:
            # The second pass would start from other values, and gradients be wrong without a word.
            raise ConfigError("`train.recompute`: a layer of the backbone overwrites its input", REMEDY)
        return outputs


def _layers(detector: TwoStageDetector, part: RecomputedPart) -> list[nn.Module]:
    if part == "encoder":
        return list(detector.encoder.layers)
    if part == "decoder":
        assert isinstance(detector.decoder, nn.Module)
        # The relation of all pairs of boxes holds more than the layers do.
        relations = [module for module in detector.decoder.modules() if isinstance(module, PositionRelation)]
        return [*detector.decoder.layers, *relations]
    assert isinstance(detector.backbone, nn.Module)
    blocks = list(_blocks(detector.backbone))
    if not blocks:
        raise ConfigError("`train.recompute`: this backbone has no sequence of blocks that could run again", REMEDY)
    return blocks


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the innermost sequences of blocks; a block has parts of its own and is no sequence."""
    members = list(module.children())
    if isinstance(module, nn.Sequential) and members and all(_is_block(member) for member in members):
        yield from members
        return
    for member in members:
        yield from _blocks(member)


def _is_block(module: nn.Module) -> bool:
    return not isinstance(module, nn.Sequential) and any(True for _ in module.children())
