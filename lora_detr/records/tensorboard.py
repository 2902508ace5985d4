"""The records of a run as TensorBoard scalars, beside the files that hold them anyway."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_detr.atomic_files import reporting
from lora_detr.errors import ConfigError


def require_tensorboard() -> None:
    """Check that the package is there, before anything depends on it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--tensorboard: the package tensorboard is not installed", 'pip install "lora-detr[log]"'
        ) from error


class TensorBoardLog:
    """Writes event files; an OutputError says when they cannot be written, maybe a record later than it happened.

    Tags: ``train/loss``, ``train/gradient_norm`` and ``train/seconds``; ``lr/<group>``; every term before weighting as
    ``<source>/<kind>/layer<J>``, kind first, so that the layers of a kind stand side by side; ``val/<metric>``.

    Args:
        folder: of the event files; made if it is absent.
        resumed_at: step that a resumed run goes on from: TensorBoard hides what an earlier process wrote beyond it.
            None for a new run.

    Raises:
        ConfigError: the package is not installed.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with reporting(folder):
            self.writer = SummaryWriter(str(folder), purge_step=None if resumed_at is None else resumed_at + 1)

    def step(self, record: Mapping[str, Any]) -> None:
        """Write a record of ``step_record``.

        Raises:
            OutputError: an event file cannot be written.
        """
        scalars = {f"train/{name}": record[name] for name in ("loss", "gradient_norm", "seconds")}
        scalars |= {f"lr/{group}": rate for group, rate in record["lr"].items()}
        scalars |= {_tag(key): value for key, value in record["terms"].items()}
        self._write(record["step"], scalars)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation, but for those of -1, which had nothing to measure, and show all so far.

        Raises:
            OutputError: an event file cannot be written.
        """
        self._write(step, {f"val/{name}": value for name, value in metrics.items() if value >= 0})
        with reporting(self.folder):
            self.writer.flush()

    def close(self) -> None:
        """Write what is left. A second call does nothing.

        Raises:
            OutputError: an event file cannot be written.
        """
        with reporting(self.folder):
            self.writer.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        with reporting(self.folder):
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, step)


def _tag(key: str) -> str:
    """Turn ``source/layerJ/kind`` into ``source/kind/layerJ``; a source without layers keeps its key."""
    source, *layer, kind = key.split("/")
    return "/".join((source, kind, *layer))
