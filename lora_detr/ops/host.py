"""The one way from the device to the host inside a training step, so that the copies can be counted."""

from __future__ import annotations

from torch import Tensor


class HostCopies:
    """Counts the device-to-host copies of the process."""

    count = 0


def to_host(tensor: Tensor) -> Tensor:
    """Return ``tensor`` on the CPU, detached; counted in ``HostCopies.count`` whatever the device."""
    HostCopies.count += 1
    return tensor.detach().cpu()
