"""Settings about pixels that architectures and prepared images share: their mean and standard deviation."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

_Mean = Annotated[float, Field(ge=-100_000, le=100_000)]
_Deviation = Annotated[float, Field(ge=1e-6, le=100_000)]
Mean: TypeAlias = tuple[_Mean, _Mean, _Mean]
"""Of red, green and blue, for pixels in [0, 1]."""
Std: TypeAlias = tuple[_Deviation, _Deviation, _Deviation]
"""Standard deviation of each channel."""
