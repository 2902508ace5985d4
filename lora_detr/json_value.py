"""The type of anything that JSON can hold: settings, states and manifests are made of it and of nothing else."""

from __future__ import annotations

from typing import TypeAlias, Union

JSON: TypeAlias = Union[dict[str, "JSON"], list["JSON"], str, int, float, bool, None]  # noqa: UP007 (a string in `|`)
