"""Answers on disk: appended as they come, read back after any interruption, one line a record.

Each process appends to a file of its own, `answers.rank-0001.jsonl`. At the start and at the end the first process
puts all of them into `answers.jsonl`, in the order of the records.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType

from qwen_vl.evaluation.records import Answer
from qwen_vl.files import whole_file

ANSWERS = "answers.jsonl"
OF_A_RANK = "answers.rank-*.jsonl"
FIELDS = tuple(field.name for field in fields(Answer))


def to_line(answer: Answer) -> str:
    """Return the line of an answer, without a newline. Keys are in the order of the dataclass."""
    return json.dumps({name: getattr(answer, name) for name in FIELDS}, ensure_ascii=False)


def from_line(line: str) -> Answer:
    """Return the answer of a line; raise ValueError if it is not one."""
    content = json.loads(line)
    if not isinstance(content, dict) or not {"id", "key"} <= content.keys() <= set(FIELDS):
        raise ValueError("no answer of qwen-vl evaluate")
    losses = content.get("losses")
    return Answer(**(content | {"losses": None if losses is None else tuple(losses)}))


class AnswerFile:
    """The file to which one process appends its answers. Every batch is on disk before the next one starts."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Open the file of a rank in the folder of a run."""
        self._path = folder / f"answers.rank-{rank:04d}.jsonl"
        self._file = open(self._path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, answers: Iterable[Answer]) -> None:
        """Write the answers of a batch and wait until they are on disk; raise OSError that names the file."""
        text = "".join(to_line(answer) + "\n" for answer in answers)
        try:
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = str(self._path)  # a full disk names no file
            raise


def answer_files(folder: Path) -> list[Path]:
    """Return the files of a run that may hold answers, the merged one first."""
    return [path for path in (folder / ANSWERS, *sorted(folder.glob(OF_A_RANK))) if path.is_file()]


def read(folder: Path, known: Callable[[str], bool]) -> dict[str, Answer]:
    """Return the answers of a run by record id, the first one of each id.

    known: whether a record id is one of the benchmark. A torn last line, of a process that was killed, is left out.
    Raise ValueError, naming file and line, for another broken line and for a record that the benchmark does not have.
    """
    found: dict[str, Answer] = {}
    for path in answer_files(folder):
        for number, answer in _lines(path):
            if not known(answer.id):
                raise ValueError(
                    f"{path}:{number}: answers a record {answer.id!r} that this benchmark does not have; it is of "
                    "another benchmark or of older data files: move it away, or give another --output_dir"
                )
            found.setdefault(answer.id, answer)
    return found


def _lines(path: Path) -> Iterator[tuple[int, Answer]]:
    """Yield (line number, answer) of a file, without a torn last line."""
    content = path.read_bytes()
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
        is_torn = False
    else:
        is_torn = True  # no newline at the end
    for number, line in enumerate(lines, start=1):
        is_last = number == len(lines)
        if is_last and is_torn:
            return
        try:
            yield number, from_line(line.decode("utf-8"))
        except (ValueError, TypeError) as error:
            if is_last:  # a power cut can leave a full line of zeros
                return
            raise ValueError(
                f"{path}:{number}: a broken line ({error}); delete that line, and its record is answered again"
            ) from error


def merge(folder: Path, ids: Sequence[str], keys: Mapping[str, str] | None = None) -> dict[str, Answer]:
    """Put the answers of all files into `answers.jsonl` in the order of `ids`, and return those that count.

    keys: {record id: key of its answer today}. An answer with another key, and one that is only an error, is dropped,
    so that its record is asked again. None keeps all of them. Raise ValueError as `read` does.
    """
    wanted = set(ids)
    found = read(folder, wanted.__contains__)
    if keys is not None:
        found = {id: answer for id, answer in found.items() if answer.key == keys[id] and answer.error is None}
    answers = {id: found[id] for id in ids if id in found}
    parts = [path for path in answer_files(folder) if path.name != ANSWERS]
    with whole_file(folder / ANSWERS) as file:
        for answer in answers.values():
            file.write((to_line(answer) + "\n").encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    for path in parts:  # after the merged file: a kill in between leaves each answer twice on disk, read once
        path.unlink()
    return answers
