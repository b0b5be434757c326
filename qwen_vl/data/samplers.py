"""The order of samples in training, a function of the seed and the epoch alone, and each rank's share of it."""

import random

import torch
from torch.utils.data import Sampler

NUM_GROUPS = 50  # batches that are sorted together: enough to pad little, few enough to stay random


def shuffled(num, seed):
    """The indices 0..num in random order, the same for the same seed."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()


class LengthGroupedSampler(Sampler):
    """Indices of all samples, shuffled so that those of a batch have similar lengths.

    lengths: tokens of each sample. batch_size: samples of a step, over all ranks. The longest batch comes
    first, so that a shortage of memory shows at once.
    """

    def __init__(self, lengths, batch_size, *, seed):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch):
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        return iter(self.order(self.epoch))

    def order(self, epoch):
        """The list of all indices in the order of an epoch."""
        generator = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.lengths)))
        generator.shuffle(order)
        batches, size = [], self.batch_size
        for start in range(0, len(order), NUM_GROUPS * size):
            window = sorted(order[start : start + NUM_GROUPS * size], key=lambda index: -self.lengths[index])
            batches.extend(window[first : first + size] for first in range(0, len(window), size))
        last = batches.pop() if len(order) % size else None  # a part of a batch, so it stays at the end
        generator.shuffle(batches)
        if batches:
            longest = max(range(len(batches)), key=lambda place: self.lengths[batches[place][0]])
            batches[0], batches[longest] = batches[longest], batches[0]
        return [index for batch in [*batches, last or []] for index in batch]


class RankBatches(Sampler):
    """Batches of indices for one rank: over all ranks, every index of an epoch comes once, however many they are.

    order: gives the `num` indices of an epoch in the order of training, without regard to ranks. Of each
    `batch_size * world_size` of them the first rank takes the first `batch_size`, and so on. What is left at the end of
    an epoch is shared out evenly: a rank may get a smaller batch there, or an empty one. `drop_last` leaves it out.
    start: (epoch, how many of its indices a resumed run has seen); that epoch begins behind them.
    """

    def __init__(self, num, order, batch_size, *, rank=0, world_size=1, drop_last=False, start=(0, 0)):
        self.num, self.batch_size, self.epoch = num, batch_size, start[0]
        self._order, self._rank, self._world_size = order, rank, world_size
        self._drop_last, self._start = drop_last, start

    def set_epoch(self, epoch):
        """Choose the epoch that iteration gives."""
        self.epoch = epoch

    def __len__(self):
        return self._count(self.num)

    def num_left(self, epoch):
        """How many batches iteration gives for an epoch."""
        return self._count(self.num - self._seen(epoch))

    def __iter__(self):
        order, size = self._order(self.epoch), self.batch_size * self._world_size
        for first in range(self._seen(self.epoch), len(order), size):
            part = order[first : first + size]
            if len(part) < size and self._drop_last:
                return
            lower, upper = (rank * len(part) // self._world_size for rank in (self._rank, self._rank + 1))
            yield part[lower:upper]

    def _seen(self, epoch):
        return self._start[1] if epoch == self._start[0] else 0

    def _count(self, num):
        size = self.batch_size * self._world_size
        return num // size if self._drop_last else -(-num // size)
