"""Several data files as one data set: which samples of each, how often, in which order."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from .chatml import Overlength, Sample, check_choice
from .dataset import SampleDataset

MIXES = ("concat", "interleave")
NUMBER = re.compile(r"[0-9]*\.?[0-9]+|[0-9]+\.")


class Source(NamedTuple):
    """A data file, its weight in the mix, and the name that logs use for it."""

    path: str
    weight: float
    name: str


def parse_sources(texts: Iterable[str]) -> list[Source]:
    """Return the Sources for the values of --data_path, each PATH or PATH:WEIGHT; an existing path may contain colons.

    A source is named after its file, or after its path if two files share a name. Raise ValueError if a weight is not
    above 0, or if a file is given twice.
    """
    pairs = [_path_and_weight(text) for text in texts]
    paths = [os.path.realpath(path) for path, _ in pairs]
    twice = next((pairs[index][0] for index, path in enumerate(paths) if path in paths[:index]), None)
    if twice:
        raise ValueError(f"--data_path {twice}: given twice; give it once with a weight, as in {twice}:2")
    short = [Path(path).name for path, _ in pairs]
    names = short if len(set(short)) == len(short) else [path for path, _ in pairs]
    return [Source(path, weight, name) for (path, weight), name in zip(pairs, names, strict=True)]


def _path_and_weight(text: str) -> tuple[str, float]:
    path, colon, weight = text.rpartition(":")
    if os.path.exists(text) or not colon or not NUMBER.fullmatch(weight):
        return text, 1.0
    if float(weight) <= 0:
        raise ValueError(f"--data_path {text}: use a weight above 0, or leave the file out")
    return path, float(weight)


class MixedDataset(Dataset):
    """A map-style data set of the samples of several data sets, each with the index of its data set as "source".

    mix="concat": all samples of each data set, as often as its weight says. For the fraction of a weight, the seed
    chooses that share of them.
    mix="interleave": as many samples as all data sets hold together. Each gives its share by weight, evenly spread. A
    data set that is smaller than its share is repeated; from a larger one the seed chooses.
    The choice depends on the sizes, the weights and the seed alone, so it is the same for every rank, worker and epoch.
    The sampler decides the order of training. `lengths`, `num_images`, `overlength` and `is_weighted` are as in
    ConversationDataset; `names` has one name for each source. With a single data set, samples have no "source".
    """

    def __init__(
        self, datasets: Iterable[SampleDataset], sources: Sequence[Source], *, mix: str = "concat", seed: int = 0
    ) -> None:
        check_choice("mix", mix, MIXES)
        self.datasets = list(datasets)
        self.names: Sequence[str] = [source.name for source in sources]
        sizes, weights = [len(dataset) for dataset in self.datasets], [source.weight for source in sources]
        counts = [size * weight for size, weight in zip(sizes, weights, strict=True)]
        if mix == "interleave":
            counts = [sum(sizes) * weight / sum(weights) for weight in weights]
        drawn = [
            _draw(size, count, np.random.default_rng([seed, place]))
            for place, (size, count) in enumerate(zip(sizes, _rounded(counts), strict=True))
        ]
        origin = np.repeat(np.arange(len(drawn)), [len(indices) for indices in drawn])
        order = _spread(drawn) if mix == "interleave" else slice(None)
        self._source, self._index = origin[order], np.concatenate(drawn)[order]
        self.lengths = self._gather([dataset.lengths for dataset in self.datasets])
        self.num_images = self._gather([dataset.num_images for dataset in self.datasets])
        self.is_weighted = any(dataset.is_weighted for dataset in self.datasets)
        pairs = zip(self.names, self.datasets, strict=True)
        self.overlength: list[Overlength] = [
            {**entry, "source": name} for name, dataset in pairs for entry in dataset.overlength
        ]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        source = int(self._source[index])
        sample = self.datasets[source][int(self._index[index])]
        return sample | {"source": source} if len(self.datasets) > 1 else sample

    def counts(self) -> list[int]:
        """Return how many samples each source gives to an epoch."""
        return np.bincount(self._source, minlength=len(self.datasets)).tolist()

    def _gather(self, values: Sequence[Sequence[int]]) -> list[int]:
        """Return the entry of each drawn sample, from one list for each data set."""
        starts = np.cumsum([0, *map(len, values)])[:-1]
        return np.concatenate(values)[starts[self._source] + self._index].tolist()


def _rounded(counts: Sequence[float]) -> list[int]:
    """Return the counts as whole numbers of at least 1 whose sum is as close as possible to that of the counts."""
    whole = [math.floor(count) for count in counts]
    missing = round(sum(counts)) - sum(whole)
    by_rest = sorted(range(len(counts)), key=lambda place: whole[place] - counts[place])
    for place in by_rest[:missing]:
        whole[place] += 1
    return [max(count, 1) for count in whole]


def _draw(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` indices of a data set of `size`: all of them as often as they fit, then a choice for the rest."""
    passes, rest = divmod(count, size)
    chosen = np.sort(generator.choice(size, rest, replace=False))
    return np.concatenate([np.tile(np.arange(size), passes), chosen])


def _spread(drawn: Sequence[np.ndarray]) -> np.ndarray:
    """Return the order that spreads the samples of each source evenly over the concatenation of all sources."""
    return np.argsort(np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in drawn]), kind="stable")
