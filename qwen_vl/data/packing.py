"""Whole samples into rows of a fixed length, so that hardly a token of a batch is padding."""

import bisect
import itertools
import logging
import random

from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

PACKINGS = ("none", "auto")
WINDOW = 8192  # samples that are fitted together; more fill rows no better and mix the data less
STREAM_WINDOW = 1024  # of a stream, as these are all in memory


def pack(lengths, *, max_length, num_pictures=None, max_pictures=None, seed=0):
    """Rows of sample indices, each of at most `max_length` tokens: every index occurs once, no sample is cut.

    Best fit over windows of shuffled samples: the longest first, each into the fullest row that still takes it. With
    `max_pictures`, a row holds at most that many pictures (`num_pictures`: one count a sample). Rows come in random
    order, the same for the same seed. Raises ValueError for a sample that is longer than a row.
    """
    counts = num_pictures if num_pictures is not None else [0] * len(lengths)
    too_long = [i for i, length in enumerate(lengths) if length > max_length]
    if too_long:
        raise ValueError(
            f"sample {too_long[0]} has {lengths[too_long[0]]} tokens, a row holds {max_length}; trim it first"
        )
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    rows = []
    for start in range(0, len(order), WINDOW):
        window = sorted(order[start : start + WINDOW], key=lambda i: -lengths[i])  # stable: ties stay shuffled
        rows.extend(_best_fit(window, lengths, counts, max_length, max_pictures))
    generator.shuffle(rows)
    return rows


def _best_fit(window, lengths, counts, max_length, max_pictures):
    """Rows for the indices of `window`, taken in the given order."""
    rows, pictures, open_rows = [], [], []  # open_rows: sorted (space left, row)
    for index in window:
        at = bisect.bisect_left(open_rows, (lengths[index], -1))
        if max_pictures is not None and counts[index]:
            while at < len(open_rows) and pictures[open_rows[at][1]] + counts[index] > max_pictures:
                at += 1
        if at < len(open_rows):
            space, row = open_rows.pop(at)
        else:
            space, row = max_length, len(rows)
            rows.append([])
            pictures.append(0)
        rows[row].append(index)
        pictures[row] += counts[index]
        if space > lengths[index]:
            bisect.insort(open_rows, (space - lengths[index], row))
    return rows


def fill_rate(rows, lengths, max_length):
    """Share of the tokens of all rows that are no padding, 0 to 1."""
    return sum(lengths[index] for row in rows for index in row) / (len(rows) * max_length)


class PackedDataset(Dataset):
    """dataset[i] is a list of samples that together fill a row; `lengths` and `num_pictures` are those of each row.

    Rows are made once, from the known lengths and without opening a picture; their order is the sampler's matter.
    `names`, `overlength` and `is_weighted` are those of the data set that is packed.
    """

    def __init__(self, dataset, *, max_length, max_pictures=None, seed=0):
        self.dataset = dataset
        self.names, self.overlength, self.is_weighted = dataset.names, dataset.overlength, dataset.is_weighted
        self.rows = pack(
            dataset.lengths,
            max_length=max_length,
            num_pictures=dataset.num_pictures,
            max_pictures=max_pictures,
            seed=seed,
        )
        self.lengths = [sum(dataset.lengths[index] for index in row) for row in self.rows]
        self.num_pictures = [sum(dataset.num_pictures[index] for index in row) for row in self.rows]
        self.fill_rate = fill_rate(self.rows, dataset.lengths, max_length)
        logger.info(
            "packed %d samples into %d rows of %d tokens, %.1f%% full",
            len(dataset), len(self.rows), max_length, 100 * self.fill_rate,
        )  # fmt: skip

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return [self.dataset[sample] for sample in self.rows[index]]


def packed_stream(samples, *, max_length, max_pictures=None, seed="", sample_of=lambda item: item):
    """Yields rows, lists of what a stream yields, endless or not; see `pack`. `sample_of`: the sample in an item."""
    samples = iter(samples)
    for number in itertools.count():
        window = list(itertools.islice(samples, STREAM_WINDOW))
        if not window:
            return
        lengths = [len(sample_of(item)["input_ids"]) for item in window]
        pictures = [len(sample_of(item)["images"]) for item in window]
        limits = {"max_length": max_length, "max_pictures": max_pictures}
        rows = pack(lengths, num_pictures=pictures, seed=f"{seed} {number}", **limits)
        yield from ([window[index] for index in row] for row in rows)
