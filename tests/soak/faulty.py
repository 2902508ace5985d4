"""``python -m tests.soak.faulty train ...``: the command line with one fault built in, in one rank or reader of images.

``LORADETR_TEST_FAULT`` holds the fault as JSON. What happens when is written beside it, so that a trial knows when the
time began in which everything must be over.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from lora_detr import cli, errors
from lora_detr.data.dataset import CocoDataset
from lora_detr.processes import launch
from lora_detr.processes.process import own_rank
from lora_detr.recipe import loaders
from lora_detr.training.step import Stepper

VARIABLE = "LORADETR_TEST_FAULT"
RAISED: dict[str, Exception] = {
    "DataError": errors.DataError("an injected fault"),
    "NumericalError": errors.NumericalError("an injected fault"),
    "WorkerError": errors.WorkerError("an injected fault"),
    "ValueError": ValueError("an injected fault"),
}
READERS = ("SIGKILL", "SIGSEGV", "exit", "hang")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, once.

    Attributes:
        kind: name in ``RAISED`` or ``exit``, in a rank; one of ``READERS`` in a reader of images.
        rank: of the process; the number of the image in a reader.
        step: at which; the epoch in a reader.
        note: file to which the instant is written, as ``time.monotonic`` has it.
        timeout: seconds to wait for a reader.
    """

    kind: str
    rank: int
    step: int
    note: str
    timeout: float = 0.0

    def variables(self) -> dict[str, str]:
        """Return what tells the command of the fault."""
        return {VARIABLE: json.dumps(asdict(self))}

    def tell(self, image_id: int = 0) -> None:
        """Write the instant, and the id of the image."""
        Path(self.note).write_text(f"{time.monotonic()} {image_id}", encoding="utf-8")


def into_ranks(fault: Fault) -> None:
    """Let a step of one rank fail; a launcher passes on that its ranks are to be started through this module."""
    start = launch.elastic_launch

    class Launch(start):  # type: ignore[misc, valid-type]
        """Starts this module in place of the command line."""

        def __call__(self, *arguments: Any) -> Any:
            return super().__call__(*("tests.soak.faulty" if item == "lora_detr" else item for item in arguments))

    launch.elastic_launch = Launch  # type: ignore[misc]
    step = Stepper.__call__

    def failing(self: Stepper, batches: Any, number: int) -> Any:
        if (own_rank(), number) == (fault.rank, fault.step):
            fault.tell()
            if fault.kind == "exit":
                sys.exit(0)
            raise RAISED[fault.kind]
        return step(self, batches, number)

    Stepper.__call__ = failing  # type: ignore[method-assign]


def into_readers(fault: Fault) -> None:
    """Let a process that reads images end, or hang, at one image."""
    loaders.READER_TIMEOUT = fault.timeout
    read = CocoDataset.sample

    def failing(self: CocoDataset, index: int, epoch: int) -> Any:
        if get_worker_info() is not None and (index, epoch) == (fault.rank, fault.step):
            fault.tell(self.image_id(index))
            if fault.kind == "exit":
                os._exit(3)
            if fault.kind == "hang":
                time.sleep(3600)
            os.kill(os.getpid(), signal.Signals[fault.kind])
        return read(self, index, epoch)

    CocoDataset.sample = failing  # type: ignore[method-assign]


def main() -> None:
    """Build the fault in and run the command line."""
    fault = Fault(**json.loads(os.environ[VARIABLE]))
    if fault.timeout:
        into_readers(fault)
    else:
        into_ranks(fault)
    cli.main()


if __name__ == "__main__":
    main()
