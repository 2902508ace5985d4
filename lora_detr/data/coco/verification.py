"""Looking at every image file before a run: does it decode, is it the file it was?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset

from lora_detr.data.coco.checksums import SHA256SUMS, read_sums
from lora_detr.data.coco.records import ImageRecord, ImageTable
from lora_detr.data.coco.report import Problem
from lora_detr.data.images import MAX_BYTES, MAX_PIXELS, Look, look_of, read_image
from lora_detr.data.progress import following
from lora_detr.errors import DataError, WorkerError
from lora_detr.processes.process import init_worker
from lora_detr.regular_files import open_regular

Verify = Literal["none", "decode", "hash"]
"""Nothing, decode every image, or compare it with ``SHA256SUMS`` in the image folder."""

# Fewer are read before processes that would read them have started.
WORTH_A_PROCESS = 200
# Images of one answer of a process.
CHUNK = 16


@dataclass(frozen=True)
class Verified:
    """What reading all images of a split has shown.

    Attributes:
        problems: of each image that failed, by its id.
        digests: SHA-256 of the file of each image that could be read, by its id.
        looks: what each image that was decoded looks like, by its id.
    """

    problems: dict[int, Problem]
    digests: dict[int, bytes]
    looks: dict[int, Look]


def verify_images(
    images: ImageTable, verify: Verify, *, max_pixels: int = MAX_PIXELS, processes: int | None = None
) -> Verified:
    """Look at every image file, in several processes if there are many; says how far it is when that takes long.

    Args:
        images: of a split.
        verify: ``decode`` finds what ``read_image`` refuses (D18, D23, D25); ``hash`` finds files that differ from
            ``SHA256SUMS`` in the image folder or are not listed there (D20), and reads them without decoding.
        max_pixels: larger images are refused before decoding.
        processes: that read; None for one a core.

    Raises:
        DataError: D20, the list of checksums cannot be read.
        WorkerError: a process died; names the images it may have been reading.
    """
    if verify == "none":
        return Verified({}, {}, {})
    checks = _Checks(images, read_sums(images.folder) if verify == "hash" else None, max_pixels)
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = 0 if len(images) < WORTH_A_PROCESS else processes
    found = Verified({}, {}, {})
    for answer in following(_answers(checks, processes), len(images), f"{images.folder}: check"):
        if answer.problem is not None:
            found.problems[answer.image_id] = answer.problem
        if answer.digest is not None:
            found.digests[answer.image_id] = answer.digest
        if answer.look is not None:
            found.looks[answer.image_id] = answer.look
    return found


@dataclass(frozen=True)
class _Answer:
    image_id: int
    problem: Problem | None
    digest: bytes | None
    look: Look | None = None


class _Checks(Dataset[_Answer]):
    """Answers by place of the image; read by ``DataLoader``, whose processes end with the one that started them."""

    def __init__(self, images: ImageTable, sums: dict[str, bytes] | None, max_pixels: int) -> None:
        self.images, self.sums, self.max_pixels = images, sums, max_pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Answer:
        record = self.images[index]
        try:
            with open_regular(record.path, MAX_BYTES) as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            if self.sums is not None:
                return _Answer(record.id, _compared(record, digest, self.sums, self.images.folder), digest)
            pixels = read_image(record, self.max_pixels)
        except DataError as error:
            return _Answer(record.id, Problem(error.code, error.message), digest)
        except (OSError, ValueError) as error:  # a name may hold what no path can
            reason = f"the image cannot be read: {getattr(error, 'strerror', None) or error}"
            return _Answer(record.id, Problem("D18", f"{record.path} (image id {record.id}): {reason}"), None)
        return _Answer(record.id, None, digest, look_of(pixels))


def _compared(record: ImageRecord, digest: bytes, sums: dict[str, bytes], folder: Path) -> Problem | None:
    where = f"{record.path} (image id {record.id})"
    expected = sums.get(os.path.normpath(record.file_name))
    if expected is None:
        return Problem("D20", f"{where}: not listed in {folder / SHA256SUMS}")
    if expected != digest:
        return Problem("D20", f"{where}: SHA-256 is {digest.hex()[:12]}..., {SHA256SUMS} has {expected.hex()[:12]}...")
    return None


def _answers(checks: _Checks, processes: int) -> Iterator[_Answer]:
    loader: DataLoader[_Answer] = DataLoader(
        checks,
        batch_size=CHUNK,
        num_workers=processes,
        collate_fn=_as_it_is,
        worker_init_fn=init_worker if processes else None,
        # A decoder that hangs on a damaged file would keep the run waiting for ever.
        timeout=300.0 if processes else 0.0,
        generator=torch.Generator(),  # its own: a run begins with the global one as it is
    )
    done = 0
    try:
        for answers in loader:
            yield from answers
            done += len(answers)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        ids = checks.images.ids[done : done + CHUNK * 2 * processes].tolist()
        raise WorkerError(
            f"a process that reads images ended or hung: {str(error).split('. ')[0]}; one of these images: {ids}",
            "take them out one by one to find which it is",
        ) from error


def _as_it_is(answers: Sequence[_Answer]) -> Sequence[_Answer]:
    return answers
