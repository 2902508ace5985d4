"""Names of systems and kinds of branches, and k of each branch by their number (paper, Table 4)."""

from __future__ import annotations

from functools import cache

from lora_detr.branches import BranchConfig
from lora_detr.config.explain import kinds_of
from lora_detr.config.presets import list_presets

DEFAULT_BASELINE = "deformable"
BRANCH_KINDS = kinds_of(BranchConfig)
# k of each branch by number of branches (paper, Table 4).
TABLE_4 = {1: (6,), 2: (6, 3), 3: (6, 4, 2), 5: (6, 5, 4, 3, 2)}
# Branches with networks of their own: the official code's order differs for three.
TABLE_4_FFN = {**TABLE_4, 3: (6, 2, 4)}


@cache
def baselines() -> tuple[str, ...]:
    """Return the names that ``--baseline`` has for systems: of all presets that also exist as ``NAME-tiny``."""
    stems = sorted(preset.path.stem for preset in list_presets())
    return tuple(stem for stem in stems if f"{stem}-tiny" in stems)


def branch_ks(count: int, system: str = DEFAULT_BASELINE, kind: str = BRANCH_KINDS[0]) -> tuple[int, ...]:
    """Return k of each of ``count`` branches: Table 4 where it has the number, else spread evenly from 6 down to 2.

    The order is that of the official code, on which its checkpoints depend: rising for Relation-DETR.

    Args:
        count: number of branches.
        system: name that ``--baseline`` has for the detector.
        kind: of the branches.
    """
    table = TABLE_4 if kind == "lora" else TABLE_4_FFN
    # From the largest to the smallest k of Table 4.
    spread = tuple(round(6 - 4 * i / (count - 1)) for i in range(count)) if count > 1 else ()
    ks = table.get(count, spread)
    return tuple(sorted(ks)) if system == "relation" else ks
