"""The data set of a run: files are read and checked, then encoded or taken from the cache, then mixed."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from qwen_vl.data.sources.locating import data_files
from qwen_vl.data.sources.readers import StreamedFile, open_files
from qwen_vl.data.sources.streaming import StreamingDataset, StreamOptions
from qwen_vl.data.sources.tokenized_cache import CachedDataset, cached
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import conversations
from .chatml import EncodeOptions
from .dataset import ConversationDataset
from .digests import cache_folder
from .markup import ImageCount, images_of
from .mixing import MixedDataset, Source
from .skip_manifests import SkipManifest, sha256
from .validation import DataError

logger = logging.getLogger(__name__)

FileDataset = ConversationDataset | CachedDataset

NUM_HEAD = 1000  # records of a stream that are inspected before it begins
MIN_CACHED_BYTES = 2**20  # a smaller file is tokenized so fast that a cache gains nothing


@dataclass(frozen=True)
class SourceOptions:
    """The options for reading map-style data sets.

    cache: a folder for encoded samples, "none", or None for the user's own cache, which takes files of 1 MiB or more.
    lazy: whether samples of a file that is not cached are encoded again on each access, see ConversationDataset.
    image_folder: see `conversations.search_dirs`.
    """

    cache: str | None = None
    lazy: bool = False
    image_folder: str | None = None


def load(
    sources: Sequence[Source],
    tokenizer: QWenTokenizer,
    encoding: EncodeOptions,
    reading: SourceOptions,
    *,
    mix: str = "concat",
    seed: int = 0,
    skip_manifests: Sequence[str] = (),
) -> FileDataset | MixedDataset:
    """Return the map-style data set of one or more sources; a MixedDataset if there are several.

    skip_manifests: paths; each file takes the manifest that was made for it.
    Raise DataError or OSError if a file cannot be read, ValueError if a record cannot be encoded.
    """
    manifests = manifests_by_file([source.path for source in sources], skip_manifests)
    datasets = [
        load_file(source.path, tokenizer, encoding, reading, skip_manifest=manifests.get(source.path))
        for source in sources
    ]
    if len(sources) == 1 and sources[0].weight == 1:
        return datasets[0]
    mixed = MixedDataset(datasets, sources, mix=mix, seed=seed)
    for source, dataset, count in zip(sources, datasets, mixed.counts(), strict=True):
        logger.info("%s: %d samples, %d in an epoch", source.path, len(dataset), count)
    return mixed


def stream(
    sources: Sequence[Source],
    tokenizer: QWenTokenizer,
    encoding: EncodeOptions,
    options: StreamOptions,
    *,
    skip_manifests: Sequence[str] = (),
) -> StreamingDataset:
    """Return the StreamingDataset of one or more sources, each with the skip manifest that was made for it."""
    manifests = manifests_by_file([source.path for source in sources], skip_manifests)
    skips = {path: SkipManifest(manifest, path) for path, manifest in manifests.items()}
    for path, manifest in manifests.items():
        logger.warning("%s: skipping the records that %s names", path, manifest)
    for source in sources:
        _look_at_head(source.path)
    return StreamingDataset(sources, tokenizer, encoding, options, skips=skips)


def _look_at_head(path: str) -> None:
    """Log the warnings about the first records of a stream. Raise DataError if all of their images are lost."""
    images = ImageCount()
    notes: Counter[str] = Counter()
    for _, record in islice(chain.from_iterable(map(_all_of, open_files(path))), NUM_HEAD):
        images.add(images_of(record))
        notes.update(problem.message for problem in conversations.check_entry("", record) if not problem.is_error)
    if images.error():
        raise DataError(f"{path}: {images.error()}")
    for message, count in notes.most_common():
        logger.warning("%s: %s (%d times in the first %d records)", path, message, count, images.num_records)


def _all_of(file: StreamedFile) -> Iterator[tuple[Callable[[], str], object]]:
    """Yield (function that returns the place, record) for all records of a streamed file, in order."""
    return chain.from_iterable(map(file.read, file.blocks(1)))


def load_file(
    path: str,
    tokenizer: QWenTokenizer,
    encoding: EncodeOptions,
    reading: SourceOptions,
    *,
    skip_manifest: str | None = None,
) -> FileDataset:
    """Return the data set of one file, from the cache (see SourceOptions) or in memory."""
    image_folder = reading.image_folder
    from_cache = partial(cached, path, tokenizer, encoding, image_folder=image_folder, skip_manifest=skip_manifest)
    if reading.cache is not None and reading.cache != "none":
        return from_cache(folder=reading.cache)
    if reading.cache is None and sum(file.stat().st_size for file, _ in data_files(path)) >= MIN_CACHED_BYTES:
        folder = cache_folder()
        try:
            return from_cache(folder=folder)
        except OSError as error:
            logger.warning("cache %s cannot be used (%s); set QWEN_VL_CACHE or --tokenized_cache", folder, error)
    return ConversationDataset(
        conversations.read(path, image_folder=image_folder, skip_manifest=skip_manifest),
        tokenizer,
        encoding,
        lazy=reading.lazy,
        search_dirs=conversations.search_dirs(path, image_folder),
    )


def manifests_by_file(paths: Sequence[str], manifests: Sequence[str]) -> dict[str, str]:
    """Return {data file: skip manifest}. Raise DataError if a manifest was made for none of the files."""
    if len(paths) == len(manifests) == 1:
        return dict(zip(paths, manifests, strict=True))  # SkipManifest raises if it does not fit
    digests = {sha256(path): path for path in paths} if manifests else {}
    found: dict[str, str] = {}
    for manifest in manifests:
        try:
            content = json.loads(Path(manifest).read_text(encoding="utf-8-sig"))
            found[digests[content["sha256"]]] = manifest
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"skip manifest {manifest}: made for none of {', '.join(paths)} as they are now; "
                "make it again with `qwen-vl data check FILE --fix OUT.json`"
            ) from None
    return found
