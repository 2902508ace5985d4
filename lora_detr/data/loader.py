"""From samples to batches: padding, and workers whose errors stay readable."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lora_detr.data.coco.report import Problem
from lora_detr.data.order import EpochSampler
from lora_detr.data.reading import EpochDataset, Read, Sample, Unreadable, read_sample
from lora_detr.errors import LoraDetrError, WorkerError
from lora_detr.processes.process import init_worker
from lora_detr.structures import Batch, Images

Key = tuple[int, int]  # epoch, index

# That workers get to end when nothing more is wanted of them.
POLITE_SECONDS = 1.0

_CAUGHT = "in DataLoader worker process"  # how PyTorch marks an error that the data set raised


def collate(samples: Sequence[Sample], size_divisor: int = 1) -> Batch:
    """Pad images to the largest height and width among them.

    Args:
        samples: at least one; pixels [3, H_i, W_i], all of one dtype, which the batch keeps.
        size_divisor: height and width are rounded up to a multiple of it.

    Returns:
        The batch; pixels are zero and ``padding`` true right of and below each image.
    """
    sizes = torch.tensor([pixels.shape[-2:] for pixels, _ in samples], dtype=torch.int64)  # [B, 2]
    height, width = (-(-side // size_divisor) * size_divisor for side in sizes.amax(dim=0).tolist())
    first = samples[0][0]
    pixels = first.new_zeros((len(samples), first.shape[0], height, width))
    padding = torch.ones((len(samples), height, width), dtype=torch.bool)
    for i, (image, _) in enumerate(samples):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        padding[i, : image.shape[1], : image.shape[2]] = False
    return Batch(Images(pixels, padding, sizes), tuple(target for _, target in samples))


class BatchLoader:
    """Batches of one epoch at a time, for one rank.

    A user's error in a worker arrives with its own type, message and code; a worker that dies or hangs is reported
    with the images it may have been working on. Images that could not be read, if others stand for them, are in
    ``unreadable``: the problem of each by image id.

    Args:
        dataset: samples.
        sampler: which of them, in which order.
        unreadable: what stands for an image that cannot be read.
        workers: processes that read ahead; 0 reads in this process. They live until the loader goes.
        size_divisor: see ``collate``.
        pin_memory: give batches in page-locked memory.
        timeout: seconds to wait for a worker; 0 waits for ever.
    """

    def __init__(
        self,
        dataset: EpochDataset,
        sampler: EpochSampler,
        *,
        workers: int,
        unreadable: Unreadable = "error",
        size_divisor: int = 1,
        pin_memory: bool = False,
        timeout: float = 0.0,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.workers = workers
        self.unreadable: dict[int, Problem] = {}
        self._unreadable = unreadable
        self._keys = _Keys(sampler)
        self._loader: DataLoader[Read | LoraDetrError] = DataLoader(
            _Guarded(dataset, unreadable),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=partial(_collate_or_error, size_divisor=size_divisor),
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=init_worker if workers else None,
            timeout=timeout if workers else 0.0,
            # Its own generator: starting an epoch must not draw from the global one, which a resumed run restores.
            generator=torch.Generator().manual_seed(sampler.seed),
        )

    def read(self, index: int, epoch: int) -> Read:
        """Read one sample in this process, or what stands for it; errors as of ``read_sample``."""
        return read_sample(self.dataset, index, epoch, self._unreadable)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and how many of its batches to leave out."""
        self.sampler.set_epoch(epoch, start)

    def __len__(self) -> int:
        """Return how many batches the next iteration gives."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches.

        Raises:
            DataError: an image cannot be used.
            WorkerError: a worker died, or gave nothing within the timeout.
        """
        try:
            yield from self._batches()
        except RuntimeError as error:  # a signal that came while ``_batches`` dealt with the same dead worker
            lost = self.worker_error(error)
            if lost is None:
                raise
            raise lost from error

    def _batches(self) -> Iterator[Batch]:
        self._keys.pending.clear()
        batches = iter(self._loader)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (OSError, EOFError, RuntimeError) as error:
                self.close()
                lost = self.worker_error(error)
                # A tensor can no longer be fetched from a dead worker, which may be noticed before its end is.
                if isinstance(error, OSError | EOFError) and self.workers and _CAUGHT not in str(error):
                    lost = self._lost("a worker that reads images died")
                if lost is None:
                    raise
                raise lost from error
            self._keys.pending.popleft()
            if isinstance(batch, LoraDetrError):
                self.close()
                raise batch
            self.unreadable |= batch.unreadable
            yield batch.batch

    def close(self) -> None:
        """End the workers, if there are any; a later iteration starts new ones.

        Left to the garbage collector this takes five seconds a worker: by then the queue that tells them is gone.
        """
        iterator = self._loader._iterator
        self._loader._iterator = None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            # One that hangs is deaf to polite requests, for each of which PyTorch would wait five seconds.
            impatience = threading.Timer(POLITE_SECONDS, _kill, [iterator._workers])
            impatience.start()
            with contextlib.suppress(RuntimeError):  # the end of a worker, noticed only now
                iterator._shutdown_workers()
            impatience.cancel()
            impatience.join()
            _kill(iterator._workers)

    def worker_error(self, error: BaseException) -> WorkerError | None:
        """Return what an error says about the workers, or None if it is about something else.

        PyTorch reports a dead worker from a signal handler: as a ``RuntimeError`` out of whatever line of the main
        process happens to run. So the error may come up in a training step as well as here.
        """
        text = str(error)
        ends = ("exited unexpectedly", "is killed by signal", "timed out")
        if not isinstance(error, RuntimeError) or not text.startswith("DataLoader") or not any(e in text for e in ends):
            return None
        return self._lost(text.split(". ")[0])

    def _lost(self, reason: str) -> WorkerError:
        ids = [self.dataset.image_id(index) for batch in self._keys.pending for _, index in batch]
        return WorkerError(
            f"{reason}; images given to the workers and not returned: {ids}", "try --workers 0 to see the cause"
        )


def build_loader(
    dataset: EpochDataset,
    *,
    batch_size: int,
    shuffle: bool,
    rank: int,
    world_size: int,
    seed: int,
    workers: int,
    drop_last: bool,
    size_divisor: int = 1,
    pin_memory: bool = False,
    timeout: float = 0.0,
    unreadable: Unreadable = "error",
    groups: Sequence[int] | None = None,
    repeats: Sequence[float] | None = None,
) -> BatchLoader:
    """Return the loader of one rank; see ``EpochSampler`` and ``BatchLoader`` for the arguments."""
    sampler = EpochSampler(
        len(dataset),
        batch_size=batch_size,
        shuffle=shuffle,
        rank=rank,
        world_size=world_size,
        seed=seed,
        drop_last=drop_last,
        groups=groups,
        repeats=repeats,
    )
    return BatchLoader(
        dataset,
        sampler,
        workers=workers,
        unreadable=unreadable,
        size_divisor=size_divisor,
        pin_memory=pin_memory,
        timeout=timeout,
    )


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()  # nothing where it has ended


class _Keys(Sampler[list[Key]]):
    """Adds the epoch to every index, since persistent workers hold a copy of the data set from the first epoch."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler
        self.pending: deque[list[Key]] = deque()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Key]]:
        for indices in self.sampler:
            keys = [(self.sampler.epoch, index) for index in indices]
            self.pending.append(keys)
            yield keys


class _Guarded(Dataset[Read | LoraDetrError]):
    """Returns a user's error instead of raising it: ``DataLoader`` would bury it in a traceback from the worker."""

    def __init__(self, dataset: EpochDataset, unreadable: Unreadable) -> None:
        self.dataset = dataset
        self.unreadable = unreadable

    def __getitem__(self, key: Key) -> Read | LoraDetrError:
        epoch, index = key
        try:
            return read_sample(self.dataset, index, epoch, self.unreadable)
        except LoraDetrError as error:
            return error


@dataclass(frozen=True)
class _ReadBatch:
    """A batch, and what could not be read on the way to it: they travel together from a worker."""

    batch: Batch
    unreadable: dict[int, Problem]

    def pin_memory(self) -> _ReadBatch:
        return _ReadBatch(self.batch.pin_memory(), self.unreadable)


def _collate_or_error(samples: list[Read | LoraDetrError], size_divisor: int) -> _ReadBatch | LoraDetrError:
    good: list[Sample] = []
    unreadable: dict[int, Problem] = {}
    for sample in samples:
        if isinstance(sample, LoraDetrError):
            return sample
        good.append(sample.sample)
        unreadable |= sample.unreadable
    return _ReadBatch(collate(good, size_divisor), unreadable)
