"""Data that does not fit in memory: read in blocks, shuffled through a buffer, divided among ranks and workers."""

import hashlib
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from qwen_vl.data import image_files
from qwen_vl.data.chatml import EncodeOptions, Overlength, OverlengthError, Sample, check_choice, fit
from qwen_vl.data.conversations import check_columns, check_entry, check_folder, named, search_dirs
from qwen_vl.data.mixing import MIXES, Source
from qwen_vl.data.packing import PackOptions, packed_stream
from qwen_vl.data.skip_manifests import SkipManifest
from qwen_vl.data.validation import DataError
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .opening import sampled_digest
from .readers import Block, StreamedFile, open_files
from .table_files import Table

logger = logging.getLogger(__name__)

MIN_BLOCKS = 16  # of a stream, so that small files are shuffled too; more would read each row group more often
MAX_EMPTY_EPOCHS = 20  # an epoch may be empty by chance, for example with few records and a weight below 1


@dataclass(frozen=True)
class StreamOptions:
    """The options of a stream: how it is mixed, shuffled, packed, and divided among the ranks.

    mix: "concat" or "interleave", see StreamingDataset. buffer_size: records that are shuffled together.
    packing: None to yield samples, or how rows of them are packed. num_seen: samples or rows that a resumed run has
    seen over all ranks, which are skipped. batch_size: of one rank. epochs: how many to yield, None for no end.
    overlength_path: a file to which each Overlength of the first epoch is appended, one JSON object a line.
    """

    mix: str = "concat"
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    buffer_size: int = 1000
    image_folder: str | None = None
    overlength_path: Path | None = None
    packing: PackOptions | None = None
    num_seen: int = 0
    batch_size: int = 1
    epochs: int | None = None

    def __post_init__(self) -> None:
        check_choice("mix", self.mix, MIXES)


class StreamedRecord(NamedTuple):
    """A record of a stream, the index of its source, and a function that raises DataError if an image is missing."""

    record: Any
    source: int
    check_images: Callable[[], None]


class StreamedSample(NamedTuple):
    """A record of a stream and its encoding."""

    streamed: StreamedRecord
    sample: Sample


class StreamingDataset(IterableDataset):
    """A stream of samples like those of ConversationDataset: epochs without end, each in another order.

    sources: each JSON Lines, Parquet, Arrow or a folder of them (`readers.open_files`). In each epoch the blocks of all
    files are shuffled and read one after the other, through a buffer in which their records are shuffled. With
    mix="concat" every record comes once in an epoch; by weight more often or, for a fraction, by chance. With
    "interleave" each source is an endless stream of its own, drawn from by weight.
    The order depends on the seed alone. All workers of all ranks read the same stream, and each yields its own part.
    Of every `batch_size * world_size` samples the first rank takes the first `batch_size`, and so on; the workers of a
    rank take turns, batch by batch. So a run resumes exactly, also with another number of workers or ranks. A process
    also reads and tokenizes the samples of the others, and those before a resume, without opening their images.
    Records are checked as in `conversations.read`. A wrong one raises a DataError that names file and line, unless a
    skip manifest names it. skips: {path of a source: its SkipManifest}.
    """

    is_weighted = True  # possibly: the records are not known in advance

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: QWenTokenizer,
        encoding: EncodeOptions,
        options: StreamOptions,
        *,
        skips: Mapping[str, SkipManifest] | None = None,
    ) -> None:
        check_folder(options.image_folder)
        self.names = [source.name for source in sources]
        self._sources, self._files = sources, [open_files(source.path) for source in sources]
        for file in chain.from_iterable(self._files):
            check_columns(file)
        self._search_dirs = [search_dirs(source.path, options.image_folder) for source in sources]
        self._tokenizer, self._encoding, self._options, self._skips = tokenizer, encoding, options, skips or {}

    @property
    def unit(self) -> str:
        """Return what is yielded: "samples", or "rows" of them."""
        return "rows" if self._options.packing else "samples"

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything but the seed that the order depends on: data and options."""
        files = [[_identity(file) for file in files] for files in self._files]
        weights = [source.weight for source in self._sources]
        packing = self._options.packing and asdict(self._options.packing)
        seen = [files, weights, self._options.mix, self._options.buffer_size, asdict(self._encoding), packing]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

    def probe(self) -> None:
        """Raise DataError if no record fits or one of the first is wrong, before workers read the stream."""
        next(self._rows(notes=False))

    def __iter__(self) -> Iterator[Sample | list[Sample]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        options, units = self._options, self._rows(notes=self._options.rank == worker == 0)
        for index, row in enumerate(islice(units, options.num_seen, None)):
            batch, place = divmod(index, options.batch_size * options.world_size)
            if place // options.batch_size == options.rank and batch % workers == worker:
                samples = [self._finished(sample) for sample in row]
                yield samples if options.packing else samples[0]

    def _rows(self, *, notes: bool) -> Iterator[list[StreamedSample]]:
        """Yield rows of samples, or each sample as a row, epoch after epoch; no row reaches into the next epoch."""
        places, packing = list(range(len(self._sources))), self._options.packing
        parts: Iterable[Iterator[StreamedSample]]
        if self._options.mix == "interleave":
            parts = [self._interleaved([chain.from_iterable(self._epochs_of([p], notes=notes)) for p in places])]
        else:
            parts = self._epochs_of(places, notes=notes)
        for number, samples in enumerate(parts):
            if packing is None:
                yield from ([sample] for sample in samples)
                continue
            seed = f"{self._options.seed} {number}"
            yield from packed_stream(samples, packing, seed=seed, sample_of=lambda item: item.sample)

    def _epochs_of(self, places: Sequence[int], *, notes: bool) -> Iterator[Iterator[StreamedSample]]:
        """Yield an iterator over the samples of each epoch. Raise DataError if the epochs stay empty."""
        num_empty = 0
        for epoch in count() if self._options.epochs is None else range(self._options.epochs):
            samples = self._epoch(places, epoch, notes=notes and epoch == 0)
            first = next(samples, None)
            if first is not None:
                num_empty = 0
                yield chain([first], samples)
                continue
            num_empty += 1
            if num_empty == MAX_EMPTY_EPOCHS:
                names = ", ".join(self._sources[place].path for place in places)
                raise DataError(f"{names}: no record that fits; look at it with `qwen-vl data check`")

    def _epoch(self, places: Sequence[int], epoch: int, *, notes: bool) -> Iterator[StreamedSample]:
        """Yield the samples of an epoch that the length limit keeps, in shuffled order."""
        for streamed in self._shuffled(self._records(places, epoch), f"{places} {epoch}"):
            sample, entry = fit(streamed.record, self._tokenizer, self._encoding)
            if entry and self._encoding.overlength == "error":
                raise OverlengthError(
                    f"{self._sources[streamed.source].path}: {entry['id']!r} has {entry['length']} tokens, more than "
                    f"{self._encoding.max_length}; shorten it, use fewer images, or raise --model_max_length"
                )
            if entry and notes:
                self._note(entry, streamed.source)
            if sample:
                yield StreamedSample(streamed, sample)

    def _records(self, places: Sequence[int], epoch: int) -> Iterator[StreamedRecord]:
        """Yield the records of an epoch in the order in which they are read."""
        files = [(place, file) for place in places for file in self._files[place]]
        per_file = -(-MIN_BLOCKS // len(files))
        blocks = [(place, file, block) for place, file in files for block in file.blocks(per_file)]
        random.Random(f"{self._options.seed} {epoch} {places}").shuffle(blocks)
        for place, file, block in blocks:
            yield from self._read(place, file, block, epoch)

    def _read(self, place: int, file: StreamedFile, block: Block, epoch: int) -> Iterator[StreamedRecord]:
        """Yield the records of a block of source number `place`, each as often as the weight of the source says."""
        weight = 1.0 if self._options.mix == "interleave" else self._sources[place].weight
        chance = random.Random(f"{self._options.seed} {epoch} {file.path} {block}")
        source = self._sources[place].path
        skips, dirs = self._skips.get(source), self._search_dirs[place]
        for where, record in file.read(block):
            if skips and skips.takes(file.prefix + where(), record):
                continue
            if isinstance(record, dict) and "id" not in record:
                record = named(source, file.prefix + where(), record)
            _check(record, file, where, source, lambda reference: True)
            check = partial(_check, record, file, where, source, partial(_is_there, dirs))
            for _ in range(int(weight) + (chance.random() < weight % 1)):
                yield StreamedRecord(record, place, check)

    def _interleaved(self, streams: Sequence[Iterator[StreamedSample]]) -> Iterator[StreamedSample]:
        """Yield samples of several streams, drawn by the weights of the sources, until one of them ends."""
        generator = random.Random(f"{self._options.seed} interleave")
        weights = [source.weight for source in self._sources]
        while True:
            (stream,) = generator.choices(streams, weights)
            sample = next(stream, None)
            if sample is None:
                return
            yield sample

    def _shuffled(self, records: Iterable[StreamedRecord], seed: str) -> Iterator[StreamedRecord]:
        """Yield the records in another order: each is replaced by a later one at a random position of the buffer."""
        generator, size = random.Random(f"{self._options.seed} shuffle {seed}"), self._options.buffer_size
        buffer: list[StreamedRecord] = []
        for record in records:
            if len(buffer) < size:
                buffer.append(record)
                continue
            place = generator.randrange(size)
            buffer[place], record = record, buffer[place]
            yield record
        generator.shuffle(buffer)
        yield from buffer

    def _finished(self, encoded: StreamedSample) -> Sample:
        """Return a sample as a data set returns it. Raise DataError if one of its images does not exist."""
        record, source, check_images = encoded.streamed
        check_images()
        sample = encoded.sample.named(record["id"], self._search_dirs[source])
        return sample | {"source": source} if len(self.names) > 1 else sample

    def _note(self, entry: Overlength, source: int) -> None:
        """Append an entry to the file of the options, if there is one."""
        if self._options.overlength_path is None:
            return
        if len(self.names) > 1:
            entry = {**entry, "source": self.names[source]}
        # One write, so lines of several processes that append do not mix.
        with open(self._options.overlength_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _check(
    record: object, file: StreamedFile, where: Callable[[], str], source: str, is_there: Callable[[str], bool]
) -> None:
    """Raise DataError if a record is wrong. where: returns its place in the file."""
    for problem in check_entry("", record, is_there):
        if problem.is_error:
            problem = problem._replace(place=where())
            raise DataError(
                f"{file.path}{problem}\n  `qwen-vl data check {source}` finds every such record, "
                "and a skip manifest leaves them out"
            )


def _identity(file: StreamedFile) -> list[Any]:
    """Return what tells one content of a file from another: its size, and of columns and images, what is in them."""
    found: list[Any] = [file.path.name, file.blocks(1)[-1:]]
    columns = file.recipe.columns
    if columns is None and not (isinstance(file, Table) and file.wanted_images):
        return found
    return [*found, sampled_digest(file.path), columns and [dict(columns.columns), columns.format]]


def _is_there(dirs: Sequence[str], reference: str) -> bool:
    return image_files.exists(reference, dirs)


def report(path: str | Path) -> dict[str, int]:
    """Log and return how many samples a run over a stream lists in an overlength file: {"trimmed", "dropped"}."""
    actions: list[str] = []
    if Path(path).is_file():
        with open(path, encoding="utf-8") as file:
            actions = [json.loads(line)["action"] for line in file]
        counts = actions.count("trimmed"), actions.count("dropped")
        logger.warning("conversations that were too long: %d trimmed, %d dropped, listed in %s", *counts, path)
    return {action: actions.count(action) for action in ("trimmed", "dropped")}
