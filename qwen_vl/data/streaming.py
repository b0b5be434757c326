"""Data that does not fit into memory: read in blocks, dealt out to ranks and workers, shuffled through a buffer."""

import json
import logging
import random
from itertools import count, islice
from pathlib import Path

from torch.utils.data import IterableDataset, get_worker_info

from qwen_vl.model.image_processing_qwen import find_picture

from .chatml import OverlengthError
from .conversations import check_entry, check_folder, named, search_dirs
from .dataset import as_item, check_policy, fit
from .mixing import MIXES
from .packing import packed_stream
from .shards import open_files
from .validation import DataError

logger = logging.getLogger(__name__)

BLOCKS_PER_READER = 8  # at least, so that a shuffled deal is fair to all
MAX_EMPTY_EPOCHS = 3


class StreamingDataset(IterableDataset):
    """Yields samples as ConversationDataset has them, without end: an epoch follows the other, each in another order.

    sources: `mixing.Source`s, each a JSON Lines, Parquet or Arrow file or a folder of them. In each epoch the blocks of
    all files are shuffled and dealt out to all readers, which are the workers of all ranks; a reader then shuffles
    through a buffer of records. Every record comes once in an epoch ("concat"; by weight more often or, for a
    fraction, by chance), or each source is an endless stream of its own, drawn from by weight ("interleave"). The
    order depends on the seed and on the number of readers.
    Records are checked as `conversations.read` does. One that is wrong is a DataError that names file and line,
    unless a skip manifest in `skips` ({path: SkipManifest}) takes it.
    options: `max_length`, `overlength` and label options as for ConversationDataset. What the limit did in the first
    epoch is appended to the file `overlength_path`, one JSON object a line.
    packing: None, or the arguments of `packing.packed_stream`; what is yielded are then rows, lists of samples.
    skip_batches: batches of `batch_size` that a resumed run has seen already on this rank; they are passed over.
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
        skip_batches=0,
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
        self._search_dirs = [search_dirs(_beside(source.path), image_folder) for source in sources]
        self._tokenizer, self._mix, self._seed, self._skips = tokenizer, mix, seed, skips or {}
        self._rank, self._world_size, self._buffer_size = rank, world_size, buffer_size
        self._options = {"max_length": max_length, "overlength": overlength, **options}
        self._overlength_path, self._packing, self._epochs = overlength_path, packing, epochs
        self._skip_batches, self._batch_size = skip_batches, batch_size

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # Batches come from the workers in turn. Those that are passed over ended somewhere in the row, so the first
        # worker now does what the next one would have done then.
        worker = (worker + self._skip_batches) % workers
        seen = self._skip_batches // workers + (worker < self._skip_batches % workers)
        reader, num_readers = self._rank * workers + worker, self._world_size * workers
        places = list(range(len(self._sources)))
        if self._mix == "interleave":
            records = self._interleaved([self._records([place], reader, num_readers) for place in places], reader)
        else:
            records = self._records(places, reader, num_readers)
        samples = self._samples(self._shuffled(records, reader))
        if self._packing:
            samples = packed_stream(samples, **self._packing)
        return islice(samples, seen * self._batch_size, None)

    def _records(self, places, reader, num_readers):
        """(epoch, place of the source, record) for each record of this reader, epoch after epoch."""
        total = BLOCKS_PER_READER * num_readers
        files = [(place, file) for place in places for file in self._files[place]]
        per_file = -(-total // len(files))
        blocks = [(place, file, block) for place, file in files for block in file.blocks(per_file)]
        num_empty = 0
        for epoch in count() if self._epochs is None else range(self._epochs):
            order, is_empty = blocks[:], True
            random.Random(f"{self._seed} {epoch} {places}").shuffle(order)
            for place, file, block in order[reader::num_readers]:
                for record in self._read(place, file, block, epoch):
                    yield epoch, place, record
                    is_empty = False
            num_empty = num_empty + 1 if is_empty else 0
            if num_empty == MAX_EMPTY_EPOCHS:
                names = ", ".join(self._sources[place].path for place in places)
                raise DataError(
                    f"{names}: fewer records than the {num_readers} processes that read; use --dataloader_num_workers 0"
                    " or leave out --streaming"
                )

    def _read(self, place, file, block, epoch):
        """The records of a block, checked, each as often as the weight of its source says."""
        weight = 1.0 if self._mix == "interleave" else self._sources[place].weight
        chance = random.Random(f"{self._seed} {epoch} {file.path} {block}")
        skips = self._skips.get(self._sources[place].path)
        for where, record in file.read(block):
            if skips and skips.takes(where(), record):
                continue
            record = self._checked(record, file, where, self._search_dirs[place])
            for _ in range(int(weight) + (chance.random() < weight % 1)):
                yield record

    def _checked(self, record, file, where, dirs):
        """The record, with an id; DataError if it is wrong."""
        if isinstance(record, dict) and "id" not in record:
            record = named(file.path, where(), record)
        for problem in check_entry("", record, lambda reference: find_picture(reference, dirs) is not None):
            if problem.is_error:
                problem = problem._replace(place=where())
                raise DataError(
                    f"{file.path}{problem}\n  `qwen-vl data check {file.path}` finds every such record, "
                    "and a skip manifest leaves them out"
                )
        return record

    def _interleaved(self, streams, reader):
        """Records of several streams, drawn by the weights of the sources, until one of them ends."""
        generator = random.Random(f"{self._seed} interleave {reader}")
        weights = [source.weight for source in self._sources]
        while True:
            (stream,) = generator.choices(streams, weights)
            record = next(stream, None)
            if record is None:
                return
            yield record

    def _shuffled(self, records, reader):
        """The records in another order: each gives way to a later one at a random place of the buffer."""
        generator, buffer = random.Random(f"{self._seed} shuffle {reader}"), []
        for record in records:
            if len(buffer) < self._buffer_size:
                buffer.append(record)
                continue
            place = generator.randrange(self._buffer_size)
            buffer[place], record = record, buffer[place]
            yield record
        generator.shuffle(buffer)
        yield from buffer

    def _samples(self, records):
        """What a data set gives for each record that fits."""
        for epoch, place, record in records:
            sample, entry = fit(record, self._tokenizer, **self._options)
            if entry and self._options["overlength"] == "error":
                raise OverlengthError(
                    f"{self._sources[place].path}: {entry['id']!r} has {entry['length']} tokens, more than "
                    f"{self._options['max_length']}; shorten it, use fewer pictures, or raise --model_max_length"
                )
            if entry and epoch == 0 and self._overlength_path:
                self._note(entry | ({"source": self.names[place]} if len(self.names) > 1 else {}))
            if sample:
                item = as_item(record["id"], sample, self._search_dirs[place])
                yield item | {"source": place} if len(self.names) > 1 else item

    def _note(self, entry):
        with open(self._overlength_path, "a", encoding="utf-8") as file:  # one write: readers do not mix their lines
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _beside(path):
    """A path in the folder where the pictures of a source lie: that of the file, or the folder itself."""
    return Path(path, "data") if Path(path).is_dir() else path


def report(path):
    """Log how many samples a run over a stream has listed in the file at `path`; {"trimmed", "dropped"}."""
    actions = []
    if Path(path).is_file():
        with open(path, encoding="utf-8") as file:
            actions = [json.loads(line)["action"] for line in file]
        counts = actions.count("trimmed"), actions.count("dropped")
        logger.warning("conversations that were too long: %d trimmed, %d dropped, listed in %s", *counts, path)
    return {action: actions.count(action) for action in ("trimmed", "dropped")}
