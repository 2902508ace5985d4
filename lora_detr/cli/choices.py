"""Options that several commands share. Imports no torch."""

from __future__ import annotations

from typing import Literal

from lora_detr.errors import ConfigError


def which_checkpoint(text: str) -> Literal["best", "last"]:
    """Return the value of ``--checkpoint``.

    Raises:
        ConfigError: it is neither of the two.
    """
    if text == "best":
        return "best"
    if text == "last":
        return "last"
    raise ConfigError(f"--checkpoint {text}: expected best or last", "best has the highest AP, last is the newest")
