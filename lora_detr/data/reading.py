"""Reading a sample, or what stands for it where an image cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from lora_detr.data.coco.report import Problem
from lora_detr.data.images import UNUSABLE
from lora_detr.errors import DataError
from lora_detr.structures import Target

Sample = tuple[Tensor, Target]

Unreadable = Literal["error", "next", "blank"]
"""What stands for an image that cannot be read: nothing (an error), the next that can (by id), or a black one."""


class EpochDataset(Protocol):
    """What a loader reads: samples that depend on the index and the epoch only."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> Sample: ...

    def image_id(self, index: int) -> int: ...

    def blank(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Read:
    """A sample, and what could not be read on the way to it.

    Attributes:
        sample: pixels and target.
        unreadable: problem of each such image by its id; empty if the sample is the one that was wanted.
    """

    sample: Sample
    unreadable: dict[int, Problem]


def read_sample(dataset: EpochDataset, index: int, epoch: int, unreadable: Unreadable = "error") -> Read:
    """Read one sample, or what stands for it.

    The next image is that of the data set, behind the last one the first, so what stands for an image depends on
    neither workers nor ranks.

    Raises:
        DataError: the image cannot be used, and nothing was asked to stand for it; or D18, no image can be read.
    """
    failed: dict[int, Problem] = {}
    while True:
        try:
            return Read(dataset.sample(index, epoch), failed)
        except DataError as error:
            image_id = dataset.image_id(index)
            if unreadable == "error" or error.code not in UNUSABLE:
                raise
            if image_id in failed:
                first = next(iter(failed.values()))
                raise DataError(
                    f"none of {len(failed)} images can be read; the first: {first.text}", code="D18"
                ) from error
            failed[image_id] = Problem(error.code, error.message)
        if unreadable == "blank":
            return Read(dataset.blank(index), failed)
        index = (index + 1) % len(dataset)
