"""Which samples an epoch has, in which order, dealt to ranks, and which come into a batch together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

LVIS_SHARE = 0.001
"""Share of images below which a class is rare, as in LVIS."""


def grouped(order: Sequence[int], groups: Sequence[int], size: int) -> list[int]:
    """Rearrange an order so that, cut into batches, as many as possible are of one group.

    Each group fills batches of its own, which come in the order in which they get full. Then comes what is left of the
    groups, one after the other; of two groups, that is at most one batch. What fills no batch at all stays at the end:
    if it is left out, a small group must not bear that more often than a large one.

    Args:
        order: indices, each once; may be empty.
        groups: number of the group of each index.
        size: of a batch, at least 1.

    Returns:
        The same indices, each once.
    """
    end = len(order) - len(order) % size
    filling: dict[int, list[int]] = {}
    arranged: list[int] = []
    for index in order[:end]:
        batch = filling.setdefault(groups[index], [])
        batch.append(index)
        if len(batch) == size:
            arranged += batch
            batch.clear()
    return [*arranged, *(index for batch in filling.values() for index in batch), *order[end:]]


def repeat_factors(images: NDArray[np.int64], classes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return how often each image is to be seen in an epoch, so that rare classes are seen more often.

    A class that a share f of the images has asks for sqrt(t / f) times, at least once; an image is repeated as its
    rarest class asks. t is the larger of 0.001 and the median share of the classes: 0.001 is for data sets of a
    thousand classes, and would repeat nothing in a small one.

    Gupta et al. (2019), "LVIS", appendix B.2.

    Args:
        images: int64 [m], place of the image of each object.
        classes: int64 [m], its category.
        count: n, number of images.

    Returns:
        float64 [n], at least 1.
    """
    factors = np.ones(count)
    pairs = np.unique(np.stack((images, classes), axis=1), axis=0)
    if not len(pairs):
        return factors
    _, place, number = np.unique(pairs[:, 1], return_inverse=True, return_counts=True)
    shares = number / count
    wanted = np.sqrt(max(LVIS_SHARE, float(np.median(shares))) / shares)
    np.maximum.at(factors, pairs[:, 0], wanted[place])
    return factors


class EpochSampler(Sampler[list[int]]):
    """The batches of one rank in one epoch, as lists of indices.

    Shuffled (training): one order for all ranks from (seed, epoch), cut into *global* batches of
    ``batch_size * world_size``, of which each rank takes its part. So the images of a step do not depend on how many
    ranks share them. The last global batch may be smaller; its parts are made equal by images from the start of the
    order. Every rank has as many batches.

    With ``groups`` that order is rearranged (see ``grouped``), so that a global batch is of one group as far as
    possible. An epoch has as many batches as without, of the same indices, and ranks matter as little. What comes
    together depends on the size of a global batch, so a run that goes on with another one within an epoch may see some
    of its images again.

    With ``repeats`` an epoch has as many samples as those add up to, rounded, always equally many: each comes as often
    as the whole part of its number, and once more with the probability of the rest.

    In order (evaluation): batches of consecutive indices, dealt to the ranks in turn. So which images are padded
    together does not depend on the number of ranks, and each image comes once. If the batches do not share out evenly,
    the later ranks have one less, down to none.

    Args:
        count: samples in the data set, at least 1.
        batch_size: of one rank.
        shuffle: training or evaluation, see above.
        rank: 0..world_size-1.
        world_size: number of ranks.
        seed: of the order.
        drop_last: leave out the last global batch if it is not full, unless it is the only one; training only.
        groups: number of the group of each sample; None for no groups; training only.
        repeats: how often each sample comes in an epoch, at least 1; None for once; training only.
    """

    def __init__(
        self,
        count: int,
        *,
        batch_size: int,
        shuffle: bool,
        rank: int,
        world_size: int,
        seed: int,
        drop_last: bool,
        groups: Sequence[int] | None = None,
        repeats: Sequence[float] | None = None,
    ) -> None:
        if count < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{count=}, {batch_size=}, {rank=}, {world_size=}")
        if groups is not None and len(groups) != count:
            raise ValueError(f"{count=}, but groups of {len(groups)}")
        if repeats is not None and (len(repeats) != count or min(repeats) < 1):
            raise ValueError(f"{count=}, but repeats of {len(repeats)}, or below 1")
        self.samples = count
        self.count = count if repeats is None else round(sum(repeats))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.drop_last = drop_last
        self.groups = groups
        self.repeats = repeats
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and how many of its batches to leave out because a resumed run has seen them."""
        self.epoch = epoch
        self.start = start

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, whatever ``start`` is; in order, those of the first rank, which has the most."""
        full, rest = divmod(self.count, self.batch_size * self.world_size)
        if self.shuffle and self.drop_last and full:
            return full
        return full + (rest > 0)

    def __len__(self) -> int:
        return max(0, self.batches_per_epoch - self.start) if self.shuffle else len(self._own_chunks())

    def __iter__(self) -> Iterator[list[int]]:
        if self.shuffle:
            order = self._order()
            yield from (self._shuffled(order, step) for step in range(self.start, self.batches_per_epoch))
        else:
            for chunk in self._own_chunks():
                first = chunk * self.batch_size
                yield list(range(first, min(first + self.batch_size, self.count)))

    def _order(self) -> list[int]:
        digest = hashlib.blake2b(f"order/{self.seed}/{self.epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        order: list[int] = torch.randperm(self.samples, generator=generator).tolist()
        if self.repeats is not None:
            factors = torch.tensor(self.repeats, dtype=torch.float64)
            often = (factors + torch.rand(self.samples, generator=generator, dtype=torch.float64)).long()
            drawn = torch.arange(self.samples).repeat_interleave(often)
            drawn = drawn[torch.randperm(len(drawn), generator=generator)]
            # What the roundings lack of an epoch's length comes from the plain order.
            order = [*drawn.tolist(), *order][: self.count]
        return order if self.groups is None else grouped(order, self.groups, self.batch_size * self.world_size)

    def _shuffled(self, order: list[int], step: int) -> list[int]:
        size = self.batch_size * self.world_size
        batch = order[step * size : (step + 1) * size]
        part = -(-len(batch) // self.world_size)
        filled = islice(cycle(batch + order if len(batch) < size else batch), self.rank * part, (self.rank + 1) * part)
        return list(filled)

    def _own_chunks(self) -> range:
        chunks = -(-self.count // self.batch_size)
        return range(self.start * self.world_size + self.rank, chunks, self.world_size)
