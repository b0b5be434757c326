"""The order of samples in training, a function of the seed and the epoch alone."""

import random

from torch.utils.data import Sampler

NUM_GROUPS = 50  # batches that are sorted together: enough to pad little, few enough to stay random


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
        generator = random.Random(f"{self.seed} {self.epoch}")
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
        return iter([index for batch in [*batches, last or []] for index in batch])
