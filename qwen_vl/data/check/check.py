"""`qwen-vl data check`: find everything that is wrong with conversation files before a run."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from qwen_vl.data import markup
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.conversations import check_folder, entries, is_repeated, search_dirs
from qwen_vl.data.process_map import chunked, process_map
from qwen_vl.data.validation import DataError, Problem
from qwen_vl.hubs import download
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import summary
from .inspect_record import Inspected, Inspector, SeenImage

RECORDS_A_CHUNK, IMAGES_A_CHUNK = 256, 32
Uses = dict[str, list[tuple[str, str | int | None, str]]]  # key of an image: (place, own id, field) of each use
ENCODING = EncodeOptions(max_length=2048)


class Check:
    """The check of several files. `files` has the FileSummary of each, `images` every SeenImage by its key.

    tokenizer: None to leave out lengths. opens: whether images are opened. on_problem(path, problem) is called for
    each Problem, progress(text, num_done, num_all or None) after each chunk.
    """

    def __init__(
        self,
        *,
        image_folder: str | None = None,
        tokenizer: QWenTokenizer | None = None,
        encoding: EncodeOptions = ENCODING,
        opens: bool = True,
        workers: int = 1,
        on_problem: Callable[[str, Problem], object] = lambda path, problem: None,
        progress: Callable[[str, int, int | None], object] = lambda text, num_done, num_all: None,
    ) -> None:
        check_folder(image_folder)
        self.image_folder, self.opens, self.workers = image_folder, opens, workers
        self._tokenizer, self._encoding = tokenizer, encoding
        self._on_problem, self._progress = on_problem, progress
        self._digests: dict[bytes, tuple[str, str]] = {}  # of conversations: (file, place) of the first
        self.images: dict[str, SeenImage] = {}
        self.files: list[summary.FileSummary] = []

    def file(self, path: str) -> summary.FileSummary:
        """Check a file and return its FileSummary, even if the file cannot be read."""
        found = summary.FileSummary(path)
        self.files.append(found)
        folders = search_dirs(path, self.image_folder)
        inspector = Inspector(path, folders, self._encoding, tokenizer=self._tokenizer, opens=self.opens)
        try:
            uses = self._records(found, inspector)
        except (DataError, OSError) as error:
            self._add(found, Problem("", None, "", "the file", _without_path(error, path)))
            return found
        if self.opens:
            self._images(found, inspector, uses)
        return found

    def _records(self, found: summary.FileSummary, inspector: Inspector) -> Uses:
        """Check every record and return the images that the records use."""
        images = markup.ImageCount()
        uses: Uses = {}
        ids: set[str | int] = set()
        chunks = chunked(entries(found.path), RECORDS_A_CHUNK)
        for chunk in process_map(inspector.records, chunks, workers=self.workers):
            for inspected in chunk:
                found.add(inspected)
                images.add(inspected.images)
                self.images.update(inspected.opened)
                for problem in (*inspected.problems, *self._repeated(found, inspected, ids)):
                    self._add(found, problem, inspected.id)
                for field, key in dict.fromkeys(inspected.uses):  # once, even if a turn repeats it
                    uses.setdefault(key, []).append((inspected.place, inspected.id, field))
            self._progress(f"{found.name}: records", found.num_records, None)
        lost = images.error()
        if lost:
            self._add(found, Problem("", None, "", "the file", lost))
        return uses

    def _repeated(self, found: summary.FileSummary, inspected: Inspected, ids: set[str | int]) -> Iterator[Problem]:
        """Yield a Problem if a record has the id of an earlier one, and another if it has the turns of one."""
        place, name, digest = inspected.place, inspected.id, inspected.digest
        if is_repeated(name, ids):
            yield Problem(place, name, "id", "same id", "the id of an earlier record")
        if digest:
            first = self._digests.setdefault(digest, (found.name, place))
            if first != (found.name, place):
                yield Problem(place, name, "conversations", "same conversation", f"the same turns as {''.join(first)}")

    def _images(self, found: summary.FileSummary, inspector: Inspector, uses: Uses) -> None:
        """Open the images that are new, and report the problems of each image for every record that uses it."""
        unseen = [key for key in uses if key not in self.images]
        chunks, num_done = list(chunked(unseen, IMAGES_A_CHUNK)), 0
        for chunk, images in zip(chunks, process_map(inspector.images, chunks, workers=self.workers), strict=True):
            self.images.update(zip(chunk, images, strict=True))
            num_done += len(chunk)
            self._progress(f"{found.name}: images", num_done, len(unseen))
        for key, places in uses.items():
            for kind, message in self.images[key].problems:
                for place, name, field in places:
                    text = message if kind == "broken image" else f"image {key}: {message}"
                    self._add(found, Problem(place, name, field, kind, text), name)

    def _add(self, found: summary.FileSummary, problem: Problem, own_id: str | int | None = None) -> None:
        found.add_problem(problem, own_id)
        self._on_problem(found.path, problem)


def _without_path(error: Exception, path: str) -> str:
    """Return the message of an error about a file, without the file's name at the start."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error).removeprefix(f"{path}: ")


def load_tokenizer(path: str | os.PathLike) -> QWenTokenizer:
    """Return the QWenTokenizer of a folder or hub name. Raise FileNotFoundError if a folder has no vocabulary."""
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "qwen.tiktoken")):
        raise FileNotFoundError(f"{path}: has no qwen.tiktoken; copy it from the published checkpoint")
    if not os.path.isdir(path):
        download.find_file(path, "tokenizer_config.json")
        folder = download.folder_of(path, "qwen.tiktoken")
        if folder is None:
            raise FileNotFoundError(f"{path}: has no qwen.tiktoken; give a Qwen-VL checkpoint")
        return QWenTokenizer.from_pretrained(folder)
    return QWenTokenizer.from_pretrained(path)


def open_report(path: str | os.PathLike) -> TextIO:
    """Open a report for writing."""
    # Half a surrogate pair, which a record may hold, becomes the escape that JSON knows for it.
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def printable(text: str) -> str:
    """Return a text with escapes for the characters that standard output cannot encode."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
