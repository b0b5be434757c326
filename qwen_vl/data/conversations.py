"""Conversation files: reading one, checking every record, and reporting all problems of the file together.

The format is described in docs/data.md. Nothing here opens an image or needs a tokenizer.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen_vl.data.sources.locating import base_of
from qwen_vl.data.sources.readers import DataFile, open_whole

from . import image_files, path_hints
from .markup import ImageCount, convertible, images_of
from .skip_manifests import SkipManifest, own_id
from .validation import DataError, Exists, Problem, check_record

logger = logging.getLogger(__name__)

MAX_SHOWN = 20  # problems that an error spells out; the others are counted by kind
FOREIGN_KINDS = ("wrong key", "wrong role", "wrong type")  # errors that records of another format have


def search_dirs(path: str | os.PathLike, image_folder: str | None = None) -> list[str]:
    """Return the folders of relative images, in order: that of the data file, `image_folder`, the working directory.

    If `path` is a folder of data files, it is the first itself; of data from a hub, it is where they are kept.
    """
    folders = [base_of(path), image_folder and os.path.abspath(image_folder), os.getcwd()]
    return list(dict.fromkeys(folder for folder in folders if folder))


def read(
    path: str | os.PathLike,
    *,
    image_folder: str | None = None,
    check_images: bool = True,
    skip_manifest: str | os.PathLike | None = None,
) -> list[dict[str, Any]]:
    """Return the checked conversations of a file of any kind: [{"id", "conversations": [{"from", "value"}, ..]}, ..].

    Records are as in the file, without the keys that have no value (`tidying.tidied`). A record without an id gets its
    place in the file as id. With `check_images` every local image must exist in one of
    `search_dirs(path, image_folder)`; none is opened.
    skip_manifest: a file that `qwen-vl data check --fix` wrote for this one. Exactly its records are skipped.
    Raise DataError with all problems of the file, OSError if it cannot be read.
    """
    check_folder(image_folder)
    folders = search_dirs(path, image_folder)
    exists = functools.cache(lambda reference: image_files.exists(reference, folders))
    skips = SkipManifest(skip_manifest, path) if skip_manifest else None
    problems, images = _Problems(path, folders), ImageCount()
    seen: set[str | int] = set()
    conversations: list[dict[str, Any]] = []
    for place, record in entries(path):
        if skips and skips.takes(place, record):
            continue
        record = named(path, place, record)
        conversations.append(record)
        images.add(images_of(record))
        for problem in check_entry(place, record, exists if check_images else None):
            problems.add(problem, record)
        if is_repeated(own_id(record), seen):
            problems.add(Problem(place, record["id"], "id", "same id", "a record has the id of an earlier one"))
    if skips:
        skips.finish(num_kept=len(conversations))
    problems.raise_if_any(len(conversations))
    if images.error():
        raise DataError(f"{path}: {images.error()}")
    problems.log_warnings()
    return conversations


def check_folder(image_folder: str | None) -> None:
    """Raise DataError if a folder is given that does not exist."""
    if image_folder and not os.path.isdir(image_folder):
        cause = path_hints.hint(str(image_folder), os.path.isdir)
        raise DataError(f"image folder {image_folder}: no such folder{cause}; correct --image_folder or leave it out")


def named(path: str | os.PathLike, place: str, record: Any) -> Any:
    """Return a record with its place in the file as id if it has none; return anything else unchanged."""
    if isinstance(record, dict) and "id" not in record:
        return {"id": f"{Path(path).name}{place}", **record}
    return record


def check_entry(place: str, record: object, exists: Exists | None = None) -> list[Problem]:
    """Return the Problems of what `entries` yields at `place`, as `validation.check_record` does."""
    return [record] if isinstance(record, Problem) else check_record(place, record, exists)


def is_repeated(name: str | int | None, seen: set[str | int]) -> bool:
    """Return whether an id is in the set `seen`, and add it there; None, for no id, is never repeated."""
    if name is None:
        return False
    repeated = name in seen
    seen.add(name)
    return repeated


# ---- the file -------------------------------------------------------------------------------------------------------


def entries(path: str | os.PathLike, *, is_ours: bool = True) -> Iterator[tuple[str, object]]:
    """Yield (place, record) for each record of a path: a file of any kind, a folder, a pattern (`locating.data_files`).

    place is "[3]" for an element of a JSON list or a row of a table, ":4" for a line of JSON Lines. In a folder it
    begins with the file's name. A record that cannot be read is a Problem instead.
    is_ours: whether a table must have the columns of our format.
    Raise DataError if a file as a whole cannot be used, OSError if it cannot be read.
    """
    is_empty = True
    for file in open_whole(path):
        if is_ours:
            check_columns(file)
        for place, record in file.records(is_ours=is_ours):
            is_empty, place = False, file.prefix + place
            yield place, record._replace(place=place) if isinstance(record, Problem) else record
    if is_empty:
        raise DataError(f"{path}: no records; give at least one conversation")


def check_columns(file: DataFile) -> None:
    """Raise DataError if a table has no column of conversations, or two columns of one name."""
    twice = [name for name, count in Counter(file.columns or ()).items() if count > 1]
    if twice:
        raise DataError(f"{file.path}: two columns {twice[0]!r}; rename or remove one")
    if file.columns is not None and file.recipe.columns is not None:
        file.recipe.columns.check(file.path, file.columns)
        return
    if file.columns is None or "conversations" in file.columns:
        return
    names = ", ".join(file.columns[:MAX_SHOWN]) or "none"
    convert = f"; for another format see `qwen-vl data convert {file.path} OUT.json --from FORMAT`"
    raise DataError(
        f"{file.path}: no column 'conversations', only {names}; add or rename it, or map the columns "
        f"(docs/data.md){convert}"
    )


# ---- the problems ---------------------------------------------------------------------------------------------------


def convert_hint(path: str | os.PathLike, formats: Counter, num_records: int) -> str:
    """Return advice for a file of another format, or "" if fewer than half of its records are in one.

    formats: the number of records that seem to be in each format.
    """
    if not formats or 2 * formats.total() < num_records:
        return ""
    form = formats.most_common(1)[0][0]
    return f"It looks like another format: `qwen-vl data convert {path} OUT.json --from {form}` makes ours of it."


class _Problems:
    """A collection of the problems of a file: the first MAX_SHOWN errors in full, the rest as counts by kind."""

    def __init__(self, path: str | os.PathLike, folders: Sequence[str]) -> None:
        self.path, self.name, self.folders = path, Path(path).name, folders
        self.shown: list[str] = []
        self.counts: Counter[str] = Counter()  # by kind, like the next one
        self.not_shown: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()  # by message
        self.first: dict[str, str] = {}  # place of the first record with that message
        self.foreign: dict[str, str] = {}  # place of a record that seems to be of another format: that format

    def add(self, problem: Problem, record: object = None) -> None:
        if not problem.is_error:
            self.warnings[problem.message] += 1
            self.first.setdefault(problem.message, problem.place)
            return
        form = convertible(record) if problem.kind in FOREIGN_KINDS else None
        if form and problem.place not in self.foreign:
            self.foreign[problem.place] = form
        self.counts[problem.kind] += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(f"  {self.name}{problem}")
        else:
            self.not_shown[problem.kind] += 1

    def raise_if_any(self, num_records: int) -> None:
        total = self.counts.total()
        if not total:
            return
        lines = [f"{self.path}: {total} problem{'s' * (total > 1)} in {num_records} records", *self.shown]
        if self.not_shown:
            by_kind = ", ".join(f"{count} {kind}" for kind, count in self.not_shown.most_common())
            lines.append(f"  and {self.not_shown.total()} more: {by_kind}")
        if self.counts["missing image"]:
            folders = ", ".join(self.folders)
            lines.append(f"  Images were looked for in {folders}; correct the paths or give --image_folder.")
        hint = convert_hint(self.path, Counter(self.foreign.values()), num_records)
        lines += [f"  {hint}"] if hint else []
        raise DataError("\n".join(lines))

    def log_warnings(self) -> None:
        for message, count in self.warnings.most_common(MAX_SHOWN):
            place = f"{self.name}{self.first[message]}"
            logger.warning("%s: %s (%d times), first at %s", self.path, message, count, place)
