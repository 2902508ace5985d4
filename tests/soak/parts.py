"""The list of all parts."""

from __future__ import annotations

from tests.soak import evaluation, files, inputs, kills, processes
from tests.soak.harness import Part

PARTS: dict[str, Part] = {
    part.name: part for module in (files, kills, inputs, processes, evaluation) for part in module.PARTS
}
