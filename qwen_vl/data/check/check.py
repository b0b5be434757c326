"""`qwen-vl data check`: everything wrong with conversation files, found before a run does."""

import os
import sys

from qwen_vl.data import markup
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.conversations import check_folder, entries, is_repeated, search_dirs
from qwen_vl.data.process_map import chunked, process_map
from qwen_vl.data.validation import DataError, Problem
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import summary
from .inspect_record import Inspector

RECORDS_A_CHUNK, PICTURES_A_CHUNK = 256, 32
ENCODING = EncodeOptions(max_length=2048)


class Check:
    """Files one after the other; `files` has the FileSummary of each, `pictures` every Picture by its key.

    tokenizer: None to leave out lengths. opens: whether pictures are opened. on_problem(path, problem) is called for
    each Problem, progress(text, num_done, num_all or None) now and then.
    """

    def __init__(
        self,
        *,
        image_folder=None,
        tokenizer=None,
        encoding: EncodeOptions = ENCODING,
        opens=True,
        workers=1,
        on_problem=lambda path, problem: None,
        progress=lambda text, num_done, num_all: None,
    ) -> None:
        check_folder(image_folder)
        self.image_folder, self.opens, self.workers = image_folder, opens, workers
        self._tokenizer, self._encoding = tokenizer, encoding
        self._on_problem, self._progress = on_problem, progress
        self._digests, self.pictures, self.files = {}, {}, []

    def file(self, path):
        """The FileSummary of one file, whatever is wrong with it."""
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
            self._pictures(found, inspector, uses)
        return found

    def _records(self, found, inspector):
        """Check every record; {key: [(place, id, field), ..]} of the pictures that they use."""
        uses, ids, images = {}, set(), markup.ImageCount()
        chunks = chunked(entries(found.path), RECORDS_A_CHUNK)
        for chunk in process_map(inspector.records, chunks, workers=self.workers):
            for inspected in chunk:
                found.add(inspected)
                images.add(inspected.images)
                self.pictures.update(inspected.opened)
                for problem in (*inspected.problems, *self._repeated(found, inspected, ids)):
                    self._add(found, problem, inspected.id)
                for field, key in dict.fromkeys(inspected.uses):  # once, however often a turn shows it
                    uses.setdefault(key, []).append((inspected.place, inspected.id, field))
            self._progress(f"{found.name}: records", found.num_records, None)
        lost = images.error()
        if lost:
            self._add(found, Problem("", None, "", "the file", lost))
        return uses

    def _repeated(self, found, inspected, ids):
        """Yields the Problems of a record that has the id or the turns of an earlier one."""
        place, name, digest = inspected.place, inspected.id, inspected.digest
        if is_repeated(name, ids):
            yield Problem(place, name, "id", "same id", "the id of an earlier record")
        if digest:
            first = self._digests.setdefault(digest, (found.name, place))
            if first != (found.name, place):
                yield Problem(place, name, "conversations", "same conversation", f"the same turns as {''.join(first)}")

    def _pictures(self, found, inspector, uses):
        """Open the pictures that were not seen before, and tell every record about its own."""
        unseen = [key for key in uses if key not in self.pictures]
        chunks, num_done = list(chunked(unseen, PICTURES_A_CHUNK)), 0
        for chunk, pictures in zip(chunks, process_map(inspector.pictures, chunks, workers=self.workers), strict=True):
            self.pictures.update(zip(chunk, pictures, strict=True))
            num_done += len(chunk)
            self._progress(f"{found.name}: pictures", num_done, len(unseen))
        for key, places in uses.items():
            for kind, message in self.pictures[key].problems:
                for place, name, field in places:
                    text = message if kind == "broken picture" else f"picture {key}: {message}"
                    self._add(found, Problem(place, name, field, kind, text), name)

    def _add(self, found, problem, own_id=None):
        found.add_problem(problem, own_id)
        self._on_problem(found.path, problem)


def _without_path(error, path):
    """What an error says about a file, without its name in front."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error).removeprefix(f"{path}: ")


def load_tokenizer(path):
    """The QWenTokenizer of a folder or hub name."""
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "qwen.tiktoken")):
        raise FileNotFoundError(f"{path}: has no qwen.tiktoken; copy it from the published checkpoint")
    return QWenTokenizer.from_pretrained(path)


def open_report(path):
    # Half a surrogate pair, which a record may hold, becomes the escape that JSON knows for it.
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def printable(text):
    """The text as standard output can show it, whatever its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
