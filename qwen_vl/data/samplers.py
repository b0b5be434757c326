"""Samplers: the order of samples in training, which depends on seed and epoch alone, and each rank's share of it."""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

NUM_GROUPS = 50  # batches that are sorted together: enough to pad little, few enough to stay random


def shuffled(num: int, seed: int) -> list[int]:
    """Return the indices 0 to num - 1 in random order, the same for the same seed."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()


class LengthGroupedSampler(Sampler):
    """The indices of all samples, shuffled so that those of a batch have similar lengths.

    lengths: tokens of each sample. batch_size: samples of a step, over all ranks. The longest batch comes first, so a
    run without enough memory fails at once.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch))

    def order(self, epoch: int) -> list[int]:
        """Return all indices in the order of an epoch."""
        generator = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        size = self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), NUM_GROUPS * size):
            window = sorted(order[start : start + NUM_GROUPS * size], key=lambda index: -self.lengths[index])
            batches.extend(window[first : first + size] for first in range(0, len(window), size))
        last = batches.pop() if len(order) % size else None  # an incomplete batch stays at the end
        generator.shuffle(batches)
        if batches:
            longest = max(range(len(batches)), key=lambda place: self.lengths[batches[place][0]])
            batches[0], batches[longest] = batches[longest], batches[0]
        return [index for batch in [*batches, last or []] for index in batch]


class RankBatches(Sampler):
    """The batches of indices for one rank. Over all ranks, every index of an epoch comes once, for any number of ranks.

    order: returns the `num` indices of an epoch in the order of training, without regard to ranks. Of each
    `batch_size * world_size` of them the first rank takes the first `batch_size`, and so on. The rest at the end of an
    epoch is divided evenly: a rank may get a smaller batch there, or an empty one. `drop_last` leaves the rest out.
    start: (epoch, how many of its indices a resumed run has seen); those are skipped.
    """

    def __init__(
        self,
        num: int,
        order: Callable[[int], Sequence[int]],
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.num, self.batch_size, self.epoch = num, batch_size, start[0]
        self._order, self._rank, self._world_size = order, rank, world_size
        self._drop_last, self._start = drop_last, start

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count(self.num)

    def num_left(self, epoch: int) -> int:
        """Return how many batches iteration yields for an epoch."""
        return self._count(self.num - self._seen(epoch))

    def __iter__(self) -> Iterator[list[int]]:
        order, size = self._order(self.epoch), self.batch_size * self._world_size
        for first in range(self._seen(self.epoch), len(order), size):
            part = order[first : first + size]
            if len(part) < size and self._drop_last:
                return
            lower, upper = (rank * len(part) // self._world_size for rank in (self._rank, self._rank + 1))
            yield list(part[lower:upper])

    def _seen(self, epoch: int) -> int:
        return self._start[1] if epoch == self._start[0] else 0

    def _count(self, num: int) -> int:
        size = self.batch_size * self._world_size
        return num // size if self._drop_last else -(-num // size)
