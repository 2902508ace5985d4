"""Images of a run that cannot be read and are skipped: each is named once, and all are counted."""

from __future__ import annotations

from collections.abc import Mapping

from lora_detr.data.coco.report import Problem
from lora_detr.errors import counted
from lora_detr.json_value import JSON
from lora_detr.processes.world import World
from lora_detr.records.display import Display

SKIPPED = ("image cannot be read and was skipped so far", "images cannot be read and were skipped so far")


class UnreadableImages:
    """Tells about skipped images, of both splits, and remembers them.

    Args:
        display: shows a line for each.
    """

    def __init__(self, display: Display) -> None:
        self.display = display
        self._problems: dict[str, Problem] = {}  # by text, which names path and id

    def tell(self, found: Mapping[int, Problem]) -> bool:
        """Name what was not named yet; return whether there was such an image.

        Args:
            found: problems by image id, of one split.
        """
        new = [problem for problem in found.values() if problem.text not in self._problems]
        for problem in new:
            self._problems[problem.text] = problem
            self.display.line(f"skipped: {problem.text}")
        return bool(new)

    def share(self, found: Mapping[int, Problem], world: World) -> bool:
        """Name what other processes have met, too, and how many images that makes; return whether there were new ones.

        All processes must call it together.
        """
        known = len(self._problems)
        new = [self.tell(part) for part in world.gather(dict(found))]
        if any(new) or known:
            self.display.line(counted(len(self._problems), *SKIPPED))
        return any(new) or bool(known)

    def to_json(self) -> list[JSON]:
        """Return all problems, for ``data_report.json``."""
        return [{"code": problem.code, "text": problem.text} for problem in self._problems.values()]
