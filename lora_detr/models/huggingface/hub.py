"""Whether files are looked for on the hub: its client would keep retrying for half a minute without a network."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

# Seconds in which the hub must answer.
PATIENCE = 5


def is_local(source: str) -> bool:
    """Return whether a folder, or a name on the hub, is read from this machine alone: from the folder or the cache."""
    return Path(source).exists() or not _is_reachable()


@cache
def _is_reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    place = urlsplit(constants.ENDPOINT)
    if place.scheme in getproxies():  # only the client knows how to go through it
        return True
    try:
        socket.create_connection((place.hostname or "", place.port or 443), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
