"""The tokenized cache: encoded samples on disk, mapped into memory, so a second start tokenizes nothing."""

import json
import logging
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256 as new_sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from torch.utils.data import Dataset

from qwen_vl.data import chatml, conversations, dataset, image_files, skip_manifests, validation
from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions, Overlength, Record, Sample
from qwen_vl.data.digests import bytes_digest
from qwen_vl.data.process_map import chunked, process_map
from qwen_vl.model import chat_qwen, tokenization_qwen
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.startup import usable_cores
from qwen_vl.terminal import progress

from . import columns, json_files, opening, readers, table_files, tidying

logger = logging.getLogger(__name__)

READING = (opening, json_files, tidying, columns, table_files, readers, validation, skip_manifests, conversations)
CODE = (tokenization_qwen, chat_qwen, *READING, chatml, dataset)  # what makes a sample
CHUNK = 1000  # samples of a record batch, and of one call to a worker
SCHEMA = pa.schema(
    {
        "id": pa.string(),  # as JSON, so that 7 and "7" stay different
        "input_ids": pa.list_(pa.int32()),
        "is_target": pa.list_(pa.bool_()),  # a label is the id itself or IGNORE_INDEX
        "images": pa.list_(pa.string()),
        "weight": pa.float64(),
    }
)
SAMPLES, INFO = "samples.arrow", "info.json"


class CacheError(ValueError):
    """An error: an entry of the cache is damaged."""


def cached(
    path: str | Path,
    tokenizer: QWenTokenizer,
    encoding: EncodeOptions,
    *,
    folder: str | Path,
    image_folder: str | None = None,
    skip_manifest: str | Path | None = None,
) -> "CachedDataset":
    """Return a CachedDataset of the conversations in a file. Write its entry to `folder` if there is none.

    An entry belongs to one content of the data file (and skip manifest), one tokenizer, one EncodeOptions and this
    code. If any of them changes, another entry is written. If several processes need an entry, one writes it and the
    others wait. A damaged entry is written again, with a warning.
    Raise what `conversations.read` and ConversationDataset raise, and OSError if the folder cannot be written.
    """
    conversations.check_folder(image_folder)
    dirs = conversations.search_dirs(path, image_folder)
    inputs = _inputs(path, tokenizer, skip_manifest, encoding)
    entry = Path(folder) / new_sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
    samples = _opened(entry, dirs)
    if samples is None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            samples = _opened(entry, dirs)
            if samples is None:
                records = conversations.read(path, image_folder=image_folder, skip_manifest=skip_manifest)
                _make(entry, path, records, tokenizer, inputs, encoding)
                return CachedDataset(entry, dirs)
    if not samples.has_all_images():
        conversations.read(path, image_folder=image_folder, skip_manifest=skip_manifest)  # names the missing ones
    logger.info("%s: %d samples from the cache in %s", path, len(samples), entry)
    if skip_manifest:
        num_skipped = len(json.loads(Path(skip_manifest).read_text(encoding="utf-8-sig"))["skip"])
        logger.warning("%s: skipped %d records, which %s names", path, num_skipped, skip_manifest)
    dataset.report(samples.overlength, len(samples), encoding)
    return samples


class CachedDataset(Dataset):
    """The samples of one cache entry, as in ConversationDataset. Ids stay on disk until they are needed.

    Raises CacheError if the entry is not what was written.
    """

    names: Sequence[str] = ()

    def __init__(self, entry: str | Path, search_dirs: Iterable[str] = ()) -> None:
        self.entry, self.search_dirs = Path(entry), tuple(search_dirs)
        try:
            info = json.loads((self.entry / INFO).read_text(encoding="utf-8"))
            if bytes_digest(self.entry / SAMPLES) != info["sha256"]:
                raise CacheError(f"{self.entry / SAMPLES}: other bytes than were written")
            reader = pa.ipc.open_file(pa.memory_map(str(self.entry / SAMPLES)))
            self.overlength: list[Overlength] = info["overlength"]
        except (ValueError, KeyError, TypeError, FileNotFoundError, pa.ArrowInvalid) as error:
            raise CacheError(str(error)) from error
        self._batches: list[pa.RecordBatch] = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)]).tolist()
        self.lengths, self.num_images = self._sizes("input_ids"), self._sizes("images")
        self.is_weighted = any((batch["weight"].to_numpy() != 1).any() for batch in self._batches)

    def __reduce__(self) -> tuple[type, tuple[Path, tuple[str, ...]]]:  # a spawned data worker maps the file itself
        return CachedDataset, (self.entry, self.search_dirs)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]  # as a list: negative from the end, IndexError beyond
        place = bisect_right(self._starts, index) - 1
        batch, row = self._batches[place], index - self._starts[place]
        ids = batch["input_ids"][row].values.to_numpy()
        is_target = batch["is_target"][row].values.to_numpy(zero_copy_only=False)
        sample = Sample(
            input_ids=ids.tolist(),
            labels=np.where(is_target, ids, IGNORE_INDEX).tolist(),
            images=batch["images"][row].as_py(),
            weight=batch["weight"][row].as_py(),
        )
        return sample.named(json.loads(batch["id"][row].as_py()), self.search_dirs)

    def has_all_images(self) -> bool:
        """Return whether every local image still exists."""
        references = {image for batch in self._batches for image in batch["images"].flatten().unique().to_pylist()}
        return image_files.found_all(references, self.search_dirs)

    def _sizes(self, key: str) -> list[int]:
        """Return how many values each sample has under a key."""
        return list(chain.from_iterable(np.diff(batch[key].offsets.to_numpy()).tolist() for batch in self._batches))


def _opened(entry: Path, search_dirs: Iterable[str]) -> CachedDataset | None:
    """Return the CachedDataset of an entry, or None if there is no entry or, with a warning, if it is damaged."""
    if not entry.exists():
        return None
    try:
        return CachedDataset(entry, search_dirs)
    except CacheError as error:
        logger.warning("cache %s is damaged (%s); it is made again", entry, error)
        return None


def _inputs(
    path: str | Path, tokenizer: QWenTokenizer, skip_manifest: str | Path | None, encoding: EncodeOptions
) -> dict[str, Any]:
    """Return everything that an entry depends on, as JSON values."""
    vocabulary = new_sha256(repr((list(tokenizer.special_tokens.items()), tokenizer.image_span_tokens)).encode())
    for token, rank in tokenizer.mergeable_ranks.items():
        vocabulary.update(b"%d %d " % (rank, len(token)) + token)
    code = new_sha256(Path(__file__).read_bytes())
    for module in CODE:
        assert module.__file__ is not None, "our modules are files"
        code.update(Path(module.__file__).read_bytes())
    return {
        "file": Path(path).name,  # stands in the ids of records that have none
        "data": skip_manifests.sha256(path),
        "skip_manifest": skip_manifest and skip_manifests.sha256(skip_manifest),
        "tokenizer": vocabulary.hexdigest(),
        "code": code.hexdigest(),
        "options": asdict(encoding),
    }


def _make(
    entry: Path,
    path: str | Path,
    records: Sequence[Record],
    tokenizer: QWenTokenizer,
    inputs: dict[str, Any],
    encoding: EncodeOptions,
) -> None:
    """Encode the records into `entry`, a folder that appears only when it is complete."""
    started, staging = time.perf_counter(), entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
    for left_over in entry.parent.glob(f".{entry.name}.*.tmp"):  # of a process that was killed: this one holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    staging.mkdir()
    workers = usable_cores() if len(records) > 2 * CHUNK else 1
    encode = partial(_encode, tokenizer=tokenizer, encoding=encoding)
    entries: list[Overlength] = []
    num_kept = 0
    try:
        with (
            pa.OSFile(str(staging / SAMPLES), "wb") as file,
            pa.ipc.new_file(file, SCHEMA) as writer,
            progress(f"tokenizing {path}", len(records)) as advance,
        ):
            chunks = list(chunked(records, CHUNK))
            encoded = process_map(encode, chunks, workers=workers)
            for chunk, (batch, affected) in zip(chunks, encoded, strict=True):
                if batch.num_rows:
                    writer.write_batch(batch)
                entries += affected
                num_kept += batch.num_rows
                advance(len(chunk))
        dataset.report(entries, num_kept, encoding)
        info = {"sha256": bytes_digest(staging / SAMPLES), "overlength": entries, "made_from": inputs}
        (staging / INFO).write_text(json.dumps(info), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)  # a damaged one
        os.replace(staging, entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    seconds = time.perf_counter() - started
    logger.info("%s: %d samples tokenized in %.1f s, kept in %s", path, num_kept, seconds, entry)


def _encode(
    records: Iterable[Record], *, tokenizer: QWenTokenizer, encoding: EncodeOptions
) -> tuple[pa.RecordBatch, list[Overlength]]:
    """Return the samples of a chunk of records as a batch, and what the length limit did to some of the records."""
    fitted = [(record["id"], *chatml.fit(record, tokenizer, encoding)) for record in records]
    kept = [(name, sample) for name, sample, _ in fitted if sample]
    samples = [sample for _, sample in kept]
    ids = [np.array(sample.input_ids, dtype=np.int32) for sample in samples]
    targets = [np.array(sample.labels, dtype=np.int32) != IGNORE_INDEX for sample in samples]
    images = [sample.images for sample in samples]
    columns = [
        pa.array([json.dumps(name) for name, _ in kept], pa.string()),
        _lists(ids, pa.int32()),
        _lists(targets, pa.bool_()),
        pa.array(images, pa.list_(pa.string())),
        pa.array([sample.weight for sample in samples], pa.float64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), [entry for _, _, entry in fitted if entry]


def _lists(arrays: Sequence[np.ndarray], kind: pa.DataType) -> pa.ListArray:
    """Return a pyarrow list array of numpy arrays."""
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(arrays) if arrays else [], kind))
