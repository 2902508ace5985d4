"""LoRA-DETR: detection transformers trained with diverse one-to-many branches that are dropped at inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import os

    from lora_detr.evaluation.predictor import Predictor

__all__ = ["__version__", "load"]

__version__ = "0.2.0"


def load(
    model: str | os.PathLike[str],
    *,
    checkpoint: Literal["best", "last"] = "best",
    ema: bool = True,
    device: str = "auto",
) -> Predictor:
    """Open a trained model for predicting.

        found = lora_detr.load("runs/deformable-lora3-1").predict("cells.jpg")
        print(found.describe(), found.boxes_xyxy_pixels)
        found.draw().save("cells-drawn.png")

    Args:
        model: run directory, checkpoint directory, a file or folder that ``loradetr strip`` wrote, or a folder of
            ``transformers``, also as ``hf:DIR_OR_NAME``.
        checkpoint: which one of a run directory; ``best`` has the highest AP, ``last`` is the newest.
        ema: take the averaged weights where a checkpoint has them.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for the best there is.

    Raises:
        ValueError: ``checkpoint`` is neither of the two.
        CheckpointError: there is no model, or it is damaged.
        ConfigError: the device is unknown or not there.
    """
    # Not at the top: importing this package, as the command line's help does, must not wait for torch.
    from pathlib import Path

    from lora_detr.evaluation.predictor import open_predictor

    if checkpoint not in ("best", "last"):
        raise ValueError(f"checkpoint must be 'best' or 'last', found {checkpoint!r}")
    return open_predictor(Path(model), checkpoint, device=device, ema=ema)
