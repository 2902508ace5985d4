"""What was found in a data set, in a form that a person and a program can read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lora_detr.errors import printable

Severity = Literal["error", "warning", "info"]

PLACES = 10
"""Places that a finding lists."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        id: code in ``docs/errors.md``.
        severity: an ``error`` stops a run; a ``warning`` costs accuracy, or makes a measurement wrong; an ``info`` is
            worth knowing.
        count: how many objects, images or classes it concerns.
        text: one line: file, number, and what it is.
        places: the first ``PLACES`` of them, such as file and id; empty where there are none to list.
        remedy: what to do; empty if nothing needs to be done.
    """

    id: str
    severity: Severity
    count: int
    text: str
    places: tuple[str, ...] = ()
    remedy: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))
        object.__setattr__(self, "places", tuple(printable(place) for place in self.places[:PLACES]))

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text

    def to_json(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


def warnings_of(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Return what a run prints before it starts: a line for each warning."""
    return tuple(str(finding) for finding in findings if finding.severity == "warning")
