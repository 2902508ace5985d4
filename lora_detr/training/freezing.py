"""Hold parts of a model still: their parameters get no gradient, their batch norms no new statistics."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lora_detr.errors import ConfigError, nearest


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Switch off the gradient of every parameter below the given names.

    Args:
        model: detector and branches.
        prefixes: names of modules or parameters, such as ``detector.backbone``; whole parts of a name only.

    Raises:
        ConfigError: a prefix names nothing.
    """
    for prefix in prefixes:
        found = [parameter for name, parameter in model.named_parameters() if _is_below(name, prefix)]
        if not found:
            parts = [name for name, part in model.named_modules() if name and any(True for _ in part.parameters())]
            known = [name for name in parts if name.count(".") <= prefix.count(".")]
            example = next((name for name in parts if name.endswith("backbone")), parts[0])
            raise ConfigError(
                f"`train.freeze`: no parameter's name begins with '{prefix}'{nearest(prefix, known)}",
                f"names of parts begin with detector. or branches., for example {example}",
            )
        for parameter in found:
            parameter.requires_grad_(False)


def train_unfrozen(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Set ``model`` to training mode, but for normalisation below the given names.

    Dropout stays on everywhere: it belongs to the path that is trained, not to the part that is held still.
    """
    model.train()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(_is_below(name, prefix) for prefix in prefixes):
            module.eval()


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")
