"""Packing: whole samples next to each other in rows of a fixed length, so a batch has almost no padding."""

import bisect
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch.utils.data import Dataset

from .chatml import Sample
from .dataset import SampleDataset

logger = logging.getLogger(__name__)

PACKINGS = ("none", "auto")
WINDOW = 8192  # samples that are packed together; more would not fill rows better, and shuffle the data less
STREAM_WINDOW = 1024  # the same for a stream, which holds them all in memory
Item = TypeVar("Item")


@dataclass(frozen=True)
class PackOptions:
    """The limits of a packed row: its tokens, and the most images in it (None: any number)."""

    max_length: int
    max_images: int | None = None


def pack(
    lengths: Sequence[int],
    *,
    max_length: int,
    num_images: Sequence[int] | None = None,
    max_images: int | None = None,
    seed: int | str = 0,
) -> list[list[int]]:
    """Return rows of sample indices, each of at most `max_length` tokens: every index occurs once, no sample is cut.

    Best fit over windows of shuffled samples: the longest first, each into the fullest row that still takes it. With
    `max_images`, a row holds at most that many images (`num_images`: one count a sample). Rows come in random
    order, the same for the same seed. Raise ValueError if a sample is longer than a row.
    """
    counts = num_images if num_images is not None else [0] * len(lengths)
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
        rows.extend(_best_fit(window, lengths, counts, max_length, max_images))
    generator.shuffle(rows)
    return rows


def _best_fit(
    window: Sequence[int],
    lengths: Sequence[int],
    counts: Sequence[int],
    max_length: int,
    max_images: int | None,
) -> list[list[int]]:
    """Return rows for the indices of `window`, taken in the given order."""
    rows: list[list[int]] = []
    images: list[int] = []  # images of each row
    open_rows: list[tuple[int, int]] = []  # sorted (space left, row)
    for index in window:
        at = bisect.bisect_left(open_rows, (lengths[index], -1))
        if max_images is not None and counts[index]:
            while at < len(open_rows) and images[open_rows[at][1]] + counts[index] > max_images:
                at += 1
        if at < len(open_rows):
            space, row = open_rows.pop(at)
        else:
            space, row = max_length, len(rows)
            rows.append([])
            images.append(0)
        rows[row].append(index)
        images[row] += counts[index]
        if space > lengths[index]:
            bisect.insort(open_rows, (space - lengths[index], row))
    return rows


def fill_rate(rows: Sequence[Sequence[int]], lengths: Sequence[int], max_length: int) -> float:
    """Return the share of the positions of all rows that hold a token and not padding, 0 to 1."""
    return sum(lengths[index] for row in rows for index in row) / (len(rows) * max_length)


class PackedDataset(Dataset):
    """A data set of rows: dataset[i] is a list of samples that fill one. `lengths`, `num_images`: those of each row.

    Rows are built once, from the known lengths and without opening an image. The sampler decides their order.
    `names`, `overlength` and `is_weighted` are those of the packed data set.
    """

    def __init__(self, dataset: SampleDataset, options: PackOptions, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.names, self.overlength, self.is_weighted = dataset.names, dataset.overlength, dataset.is_weighted
        self.rows = pack(
            dataset.lengths,
            max_length=options.max_length,
            num_images=dataset.num_images,
            max_images=options.max_images,
            seed=seed,
        )
        self.lengths = [sum(dataset.lengths[index] for index in row) for row in self.rows]
        self.num_images = [sum(dataset.num_images[index] for index in row) for row in self.rows]
        self.fill_rate = fill_rate(self.rows, dataset.lengths, options.max_length)
        logger.info(
            "packed %d samples into %d rows of %d tokens, %.1f%% full",
            len(dataset), len(self.rows), options.max_length, 100 * self.fill_rate,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Sample]:
        return [self.dataset[sample] for sample in self.rows[index]]


def packed_stream(
    samples: Iterable[Item], packing: PackOptions, *, seed: str, sample_of: Callable[[Item], Sample]
) -> Iterator[list[Item]]:
    """Yield rows of the items of a stream, which may be endless, as `pack` fills them.

    sample_of: returns the Sample in an item.
    """
    samples = iter(samples)
    for number in itertools.count():
        window = list(itertools.islice(samples, STREAM_WINDOW))
        if not window:
            return
        rows = pack(
            [len(sample_of(item).input_ids) for item in window],
            max_length=packing.max_length,
            num_images=[len(sample_of(item).images) for item in window],
            max_images=packing.max_images,
            seed=f"{seed} {number}",
        )
        yield from ([window[index] for index in row] for row in rows)
