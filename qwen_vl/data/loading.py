"""The data set of a run: its files read and checked, encoded or taken from the cache, and mixed."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from . import conversations
from .cache import cached, default_folder
from .dataset import ConversationDataset
from .markup import ImageCount, images_of
from .mixing import MixedDataset
from .shards import DataFile, data_files, open_files
from .skipping import SkipManifest, sha256
from .streaming import StreamingDataset
from .validation import DataError

logger = logging.getLogger(__name__)

NUM_HEAD = 1000  # records of a stream that are looked at before it begins
MIN_CACHED_BYTES = 2**20  # a smaller file is tokenised faster than anyone can look


def load(sources, tokenizer, *, mix="concat", seed=0, cache=None, skip_manifests=(), **options):
    """The map-style data set of one or more `mixing.Source`s; a MixedDataset if there are several.

    cache: a folder for encoded samples, "none", or None for the user's own cache, which takes files of 1 MiB or more.
    skip_manifests: paths; each file takes the one that was made for it. options: see `load_file`.
    Raises what reading and encoding raise.
    """
    manifests = manifests_by_file([source.path for source in sources], skip_manifests)
    datasets = [
        load_file(source.path, tokenizer, cache=cache, skip_manifest=manifests.get(source.path), **options)
        for source in sources
    ]
    if len(sources) == 1 and sources[0].weight == 1:
        return datasets[0]
    mixed = MixedDataset(datasets, sources, mix=mix, seed=seed)
    for source, dataset, count in zip(sources, datasets, mixed.counts(), strict=True):
        logger.info("%s: %d samples, %d in an epoch", source.path, len(dataset), count)
    return mixed


def stream(sources, tokenizer, *, skip_manifests=(), **options):
    """The StreamingDataset of one or more `mixing.Source`s, its skip manifests read; options: as it takes them."""
    manifests = manifests_by_file([source.path for source in sources], skip_manifests)
    skips = {path: SkipManifest(manifest, path) for path, manifest in manifests.items()}
    for path, manifest in manifests.items():
        logger.warning("%s: records are left out as %s says", path, manifest)
    for source in sources:
        _look_at_head(source.path)
    return StreamingDataset(sources, tokenizer, skips=skips, **options)


def _look_at_head(path: str) -> None:
    """Log what the first records of a stream deserve a warning for; raise DataError if all their images are lost."""
    images, notes = ImageCount(), Counter()
    for _, record in islice(chain.from_iterable(map(_all_of, open_files(path))), NUM_HEAD):
        images.add(images_of(record))
        notes.update(problem.message for problem in conversations.check_entry("", record) if not problem.is_error)
    if images.error():
        raise DataError(f"{path}: {images.error()}")
    for message, count in notes.most_common():
        logger.warning("%s: %s (%d times in the first %d records)", path, message, count, images.num_records)


def _all_of(file: DataFile) -> Iterator[tuple[Callable[[], str], object]]:
    """Yield (function that gives the place, record) for all of a file that is streamed, in order."""
    return chain.from_iterable(map(file.read, file.blocks(1)))


def load_file(path, tokenizer, *, cache, lazy=False, image_folder=None, skip_manifest=None, **options):
    """The data set of one file: from the cache (see `load`), or in memory.

    options: `max_length`, `overlength` and the label options of ConversationDataset.
    """
    reading = {"image_folder": image_folder, "skip_manifest": skip_manifest}
    if cache not in (None, "none"):
        return cached(path, tokenizer, folder=cache, **reading, **options)
    if cache is None and sum(file.stat().st_size for file, _ in data_files(path)) >= MIN_CACHED_BYTES:
        folder = default_folder()
        try:
            return cached(path, tokenizer, folder=folder, **reading, **options)
        except OSError as error:
            logger.warning("cache %s cannot be used (%s); set QWEN_VL_CACHE or --tokenized_cache", folder, error)
    return ConversationDataset(
        conversations.read(path, **reading),
        tokenizer,
        lazy=lazy,
        search_dirs=conversations.search_dirs(path, image_folder),
        **options,
    )


def manifests_by_file(paths, manifests):
    """{data file: skip manifest}; DataError for a manifest that was made for none of the files."""
    if len(paths) == len(manifests) == 1:
        return dict(zip(paths, manifests, strict=True))  # reading says what does not fit
    digests = {sha256(path): path for path in paths} if manifests else {}
    found = {}
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
