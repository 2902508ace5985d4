"""Whether the packages that write and run exported files are installed."""

from __future__ import annotations

from lora_detr.config.installed import installed_version
from lora_detr.errors import ConfigError

REMEDY = 'pip install "lora-detr[onnx]"'


def require(*packages: str, what: str) -> None:
    """Check that packages are installed.

    Args:
        packages: as pip calls them.
        what: needs them, for the message.

    Raises:
        ConfigError: names the first that is not.
    """
    for package in packages:
        # Packages for GPUs have names of their own.
        if installed_version(package) is None and installed_version(f"{package}-gpu") is None:
            raise ConfigError(f"{what} needs the package {package}, which is not installed", REMEDY)
