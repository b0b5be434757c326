"""OUT/eval_answers.jsonl: every answer of every evaluation with --eval_generate, one JSON object a line.

Keys: "step", "id", "question", "answers" (the right ones), "answer", "score" (0 to 1), "tokens" and "finish", as in
samples.jsonl of `qwen-vl evaluate`; a record without an answer has an "error", and its score is null.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen_vl.evaluation.metrics.result import Result
from qwen_vl.evaluation.records import Answer, Record
from qwen_vl.files import read_entries, whole_file

FILE = "eval_answers.jsonl"

Entry = dict[str, Any]


def entries_of(step: int, records: Iterable[Record], answers: Mapping[str, Answer], result: Result) -> list[Entry]:
    """Return the entries of one evaluation, in the order of the records."""
    scores = {sample.id: sample.score for sample in result.samples}
    entries = []
    for record in records:
        answer = answers[record.id]
        entry = {
            "step": step,
            "id": record.id,
            "question": record.question,
            "answers": list(record.answers),
            "answer": answer.text,
            "score": scores.get(record.id),
            "tokens": answer.num_tokens,
            "finish": answer.finish,
        }
        entries.append(entry if answer.error is None else entry | {"error": answer.error})
    return entries


def read(path: str | os.PathLike[str]) -> list[Entry]:
    """Return the entries of a file, [] if there is none; an unfinished last line of a killed run is left out."""
    return read_entries(path) if Path(path).is_file() else []


def keep(path: str | os.PathLike[str], wanted: Callable[[int], bool]) -> None:
    """Leave only the whole lines of wanted steps in a file; do nothing without one."""
    if Path(path).is_file():
        text = lines(entry for entry in read(path) if wanted(entry["step"]))
        if text != Path(path).read_bytes():
            with whole_file(path) as file:
                file.write(text)


def append(path: str | os.PathLike[str], entries: Iterable[Entry]) -> None:
    """Append entries to a file; all lines reach the disk together."""
    with open(path, "ab") as file:
        file.write(lines(entries))
        file.flush()
        os.fsync(file.fileno())


def lines(entries: Iterable[Entry]) -> bytes:
    """Return entries as lines."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode("utf-8")
