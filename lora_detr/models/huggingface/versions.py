"""Whether ``transformers`` is there, and of a version that is known."""

from __future__ import annotations

import re
from typing import Any

from lora_detr.config.installed import installed_version
from lora_detr.errors import PackageError

PREFIX = "hf:"
"""What stands before a folder or name where a preset could stand too."""

VERSIONS = (5, 24), (6, 0)
"""First version whose modules and losses are as expected, and the first one that is not."""


def require_transformers() -> None:
    """Check that the package is there and of a version that is known.

    Raises:
        PackageError: it is not.
    """
    remedy = "pip install 'lora-detr[hf]'"
    found = installed_version("transformers")
    if found is None:
        raise PackageError("this detector needs the package transformers, which is not installed", remedy)
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if not VERSIONS[0] <= numbers < VERSIONS[1]:
        lowest, highest = (".".join(map(str, one)) for one in VERSIONS)
        message = f"this detector needs transformers from {lowest} to below {highest}, found {found}"
        raise PackageError(message, remedy)
    from transformers.utils import logging

    quiet: Any = logging.disable_progress_bar  # of reading and writing weights, which takes no time worth showing
    quiet()
