"""Readers that are made of others: a part of a table, or a table in the words of another file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qwen_vl.evaluation.records import Record

from . import json_lines, tsv
from .reading import by_id, json_rows

Reader = Callable[[Mapping[str, Path]], Sequence[Record]]
SEED_DIMENSIONS = {  # as the table's column `category` calls types 1 to 9
    "scene understanding": 1,
    "instance identity": 2,
    "instance attributes": 3,
    "instance location": 4,
    "instances counting": 5,
    "spatial relation": 6,
    "instance interaction": 7,
    "visual reasoning": 8,
    "text understanding": 9,
}


def only(reader: Reader, field: str, *values: str) -> Reader:
    """Return a reader of the records whose `field` has one of the values; it raises ValueError if none has."""

    def read(files: Mapping[str, Path]) -> list[Record]:
        records = reader(files)
        kept = [record for record in records if record.fields.get(field) in values]
        if not kept:
            found = sorted({str(record.fields.get(field)) for record in records})
            raise ValueError(
                f"{files['records']}: no row has {' or '.join(values)} in column {field}, which has "
                f"{', '.join(found):.200}; get the table of this split"
            )
        return kept

    return read


def options_in_question(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a table with options as AI2D asks them: the options, one a line, end the question.

    The accepted answer is the text of the right option.
    """
    records = []
    for record in tsv.read(files):
        letters = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", record.options, strict=False))
        answers = tuple(letters.get(answer, answer) for answer in record.answers)
        question = record.question + "\n".join(record.options)
        records.append(replace(record, question=question, answers=answers, options=()))
    return records


def seed_table(files: Mapping[str, Path]) -> list[Record]:
    """Return the image questions of SEED-Bench's table, with the field `question_type_id` of each."""
    records = []
    for record in tsv.read(files):
        name = record.fields.get("category", "").strip().lower()
        if name not in SEED_DIMENSIONS:
            raise ValueError(
                f"{files['records']}, index {record.id}, column category: {name!r}; use one of "
                f"{', '.join(SEED_DIMENSIONS)}"
            )
        extra = {"question_id": record.id, "question_type_id": SEED_DIMENSIONS[name], "data_type": "image"}
        records.append(replace(record, fields={**record.fields, **extra}))
    return records


def vqav2_testdev(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of test-dev.

    The server wants an answer to each question of the whole test set. With its file (role "all_questions") the first
    record has the ids of the others in the field `other_question_ids`.
    """
    records = json_lines.vqa(files)
    if "all_questions" not in files or not records:
        return records
    asked = {record.fields["question_id"] for record in records}
    others = [
        name for name in by_id(json_rows(files["all_questions"], "questions"), "question_id") if name not in asked
    ]
    return [replace(records[0], fields={**records[0].fields, "other_question_ids": others}), *records[1:]]
