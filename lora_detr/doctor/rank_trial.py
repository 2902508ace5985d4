"""The process that ``loradetr doctor`` starts several of: it joins the others and adds up a tensor with them.

``self_test.several_processes`` runs ``python -m lora_detr.doctor.rank_trial DEVICE SECONDS`` once for each rank.
"""

from __future__ import annotations

import sys

import torch

from lora_detr.errors import LoraDetrError
from lora_detr.processes.world import World


def main(device: str, timeout: str) -> int:
    """Add up over all processes and return 0 if the sum is right, else 1.

    Args:
        device: ``cpu`` or ``cuda``.
        timeout: seconds to wait for the others.
    """
    try:
        world = World.from_environment(device, float(timeout))
    except LoraDetrError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    own = torch.arange(4.0, device=world.device) + world.rank
    found = world.sum(own).tolist()
    expected = [world.size * place + world.size * (world.size - 1) / 2 for place in range(4)]
    ranks = list(world.gather(world.rank))
    world.close()
    if (found, ranks) != (expected, list(range(world.size))):
        sys.stderr.write(f"rank {world.rank}: the sum is {found}, expected {expected}; ranks {ranks}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
