"""Data that does not fit into memory: read in blocks, shuffled through a buffer, dealt out to ranks and workers."""

import hashlib
import json
import logging
import random
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

from torch.utils.data import IterableDataset, get_worker_info

from qwen_vl.data.chatml import OverlengthError
from qwen_vl.data.conversations import check_columns, check_entry, check_folder, named, search_dirs
from qwen_vl.data.dataset import as_item, check_policy, fit
from qwen_vl.data.mixing import MIXES
from qwen_vl.data.packing import packed_stream
from qwen_vl.data.validation import DataError
from qwen_vl.model.image_loading_qwen import find_picture

from .readers import open_files

logger = logging.getLogger(__name__)

MIN_BLOCKS = 16  # of a stream, so that also small files are shuffled; of a row group each block is read from its start
MAX_EMPTY_EPOCHS = 20  # by chance, as of a few records with a weight below 1


class StreamingDataset(IterableDataset):
    """Yields samples as ConversationDataset has them, without end: an epoch follows the other, each in another order.

    sources: `mixing.Source`s, each JSON Lines, Parquet, Arrow or a folder of them (`shards.open_files`). In each epoch
    the blocks of all files are shuffled and read one after the other, through a buffer in which their records are
    shuffled. Every record comes once in an epoch ("concat"; by weight more often or, for a fraction, by chance), or
    each source is an endless stream of its own, drawn from by weight ("interleave").
    The order depends on the seed alone. All workers of all ranks go through the same stream, and each gives what is
    its own: of every `batch_size * world_size` samples the first rank takes the first `batch_size`, and so on, in
    batches that its workers make in turn. So a run goes on exactly with another number of workers or ranks. What is
    not its own costs a process reading and tokenising, and no look at a picture.
    Records are checked as `conversations.read` does. One that is wrong is a DataError that names file and line,
    unless a skip manifest in `skips` ({path: SkipManifest}) takes it.
    options: `max_length`, `overlength` and label options as for ConversationDataset. What the limit did in the first
    epoch is appended to the file `overlength_path`, one JSON object a line.
    packing: None, or the arguments of `packing.packed_stream`; what is yielded are then rows, lists of samples.
    num_seen: samples or rows that a resumed run has seen already, over all ranks; they are passed over.
    epochs: how many to yield, None for no end.
    """

    is_weighted = True  # it may be: nobody has read all records

    def __init__(
        self,
        sources,
        tokenizer,
        *,
        max_length,
        overlength="trim",
        mix="concat",
        seed=0,
        rank=0,
        world_size=1,
        buffer_size=1000,
        image_folder=None,
        skips=None,
        overlength_path=None,
        packing=None,
        num_seen=0,
        batch_size=1,
        epochs=None,
        **options,
    ):
        check_policy(overlength)
        check_folder(image_folder)
        if mix not in MIXES:
            raise ValueError(f"mix: {mix!r}; use one of {', '.join(MIXES)}")
        self.names = [source.name for source in sources]
        self._sources, self._files = sources, [open_files(source.path) for source in sources]
        for file in chain.from_iterable(self._files):
            check_columns(file)
        self._search_dirs = [search_dirs(source.path, image_folder) for source in sources]
        self._tokenizer, self._mix, self._seed, self._skips = tokenizer, mix, seed, skips or {}
        self._rank, self._world_size, self._buffer_size = rank, world_size, buffer_size
        self._options = {"max_length": max_length, "overlength": overlength, **options}
        self._overlength_path, self._epochs = overlength_path, epochs
        self._packing, self._num_seen, self._batch_size = packing, num_seen, batch_size

    @property
    def unit(self):
        """What is yielded: "samples", or "rows" of them."""
        return "rows" if self._packing else "samples"

    @property
    def fingerprint(self):
        """A digest of what the order depends on beside the seed: other data or settings have another one."""
        files = [[(file.path.name, file.blocks(1)[-1:]) for file in files] for files in self._files]
        weights = [source.weight for source in self._sources]
        seen = [files, weights, self._mix, self._buffer_size, self._options, self._packing]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

    def probe(self):
        """None; a DataError where no record fits, or the first ones are wrong, before anybody reads the stream."""
        next(self._units(notes=False))

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        units = self._units(notes=self._rank == worker == 0)
        for index, unit in enumerate(islice(units, self._num_seen, None)):
            batch, place = divmod(index, self._batch_size * self._world_size)
            if place // self._batch_size == self._rank and batch % workers == worker:
                yield [self._item(*sample) for sample in unit] if self._packing else self._item(*unit)

    def _units(self, *, notes):
        """Samples as `_epoch` gives them, or rows of them, epoch after epoch; rows do not reach over its end."""
        places = list(range(len(self._sources)))
        if self._mix == "interleave":
            parts = [self._interleaved([chain.from_iterable(self._epochs_of([p], notes=notes)) for p in places])]
        else:
            parts = self._epochs_of(places, notes=notes)
        for number, samples in enumerate(parts):
            if self._packing:
                seed = f"{self._seed} {number}"
                samples = packed_stream(samples, sample_of=lambda unit: unit[1], seed=seed, **self._packing)
            yield from samples

    def _epochs_of(self, places, *, notes):
        """Yields an iterator over the samples of each epoch; DataError where these stay empty."""
        num_empty = 0
        for epoch in count() if self._epochs is None else range(self._epochs):
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

    def _epoch(self, places, epoch, *, notes):
        """(record, encoding, place of the source, function that checks the pictures) for each record that fits."""
        for record, place, check in self._shuffled(self._records(places, epoch), f"{places} {epoch}"):
            sample, entry = fit(record, self._tokenizer, **self._options)
            if entry and self._options["overlength"] == "error":
                raise OverlengthError(
                    f"{self._sources[place].path}: {entry['id']!r} has {entry['length']} tokens, more than "
                    f"{self._options['max_length']}; shorten it, use fewer pictures, or raise --model_max_length"
                )
            if entry and notes and self._overlength_path:
                self._note(entry | ({"source": self.names[place]} if len(self.names) > 1 else {}))
            if sample:
                yield record, sample, place, check

    def _records(self, places, epoch):
        """(record, place of the source, function that checks its pictures) for each record of an epoch."""
        files = [(place, file) for place in places for file in self._files[place]]
        per_file = -(-MIN_BLOCKS // len(files))
        blocks = [(place, file, block) for place, file in files for block in file.blocks(per_file)]
        random.Random(f"{self._seed} {epoch} {places}").shuffle(blocks)
        for place, file, block in blocks:
            yield from self._read(place, file, block, epoch)

    def _read(self, place, file, block, epoch):
        """The records of a block as `_records` has them, each as often as the weight of its source says."""
        weight = 1.0 if self._mix == "interleave" else self._sources[place].weight
        chance = random.Random(f"{self._seed} {epoch} {file.path} {block}")
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
                yield record, place, check

    def _interleaved(self, streams):
        """Samples of several streams, drawn by the weights of the sources, until one of them ends."""
        generator = random.Random(f"{self._seed} interleave")
        weights = [source.weight for source in self._sources]
        while True:
            (stream,) = generator.choices(streams, weights)
            sample = next(stream, None)
            if sample is None:
                return
            yield sample

    def _shuffled(self, records, seed):
        """The records in another order: each gives way to a later one at a random place of the buffer."""
        generator, buffer = random.Random(f"{self._seed} shuffle {seed}"), []
        for record in records:
            if len(buffer) < self._buffer_size:
                buffer.append(record)
                continue
            place = generator.randrange(self._buffer_size)
            buffer[place], record = record, buffer[place]
            yield record
        generator.shuffle(buffer)
        yield from buffer

    def _item(self, record, sample, place, check):
        """What a data set gives for a sample, whose pictures are looked for now."""
        check()
        item = as_item(record["id"], sample, self._search_dirs[place])
        return item | {"source": place} if len(self.names) > 1 else item

    def _note(self, entry):
        with open(self._overlength_path, "a", encoding="utf-8") as file:  # one write: readers do not mix their lines
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _check(record, file, where, source, is_there):
    """None, or a DataError if the record is wrong."""
    for problem in check_entry("", record, is_there):
        if problem.is_error:
            problem = problem._replace(place=where())
            raise DataError(
                f"{file.path}{problem}\n  `qwen-vl data check {source}` finds every such record, "
                "and a skip manifest leaves them out"
            )


def _is_there(dirs, reference):
    return find_picture(reference, dirs) is not None


def report(path):
    """Log how many samples a run over a stream has listed in the file at `path`; {"trimmed", "dropped"}."""
    actions = []
    if Path(path).is_file():
        with open(path, encoding="utf-8") as file:
            actions = [json.loads(line)["action"] for line in file]
        counts = actions.count("trimmed"), actions.count("dropped")
        logger.warning("conversations that were too long: %d trimmed, %d dropped, listed in %s", *counts, path)
    return {action: actions.count(action) for action in ("trimmed", "dropped")}
