"""Readers that are made of others: a part of a table, or a table in the words of another file."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qwen_vl.evaluation.metrics.choice import SEED_DIMENSIONS
from qwen_vl.evaluation.records import Record

from . import json_lines, tsv
from .reading import by_id, json_rows

Reader = Callable[[Mapping[str, Path]], Sequence[Record]]
PREFIX = "dimension/"
SEED_TYPES = {name.removeprefix(PREFIX).lower(): number for number, name in enumerate(SEED_DIMENSIONS[:9], 1)}
SEED_TYPES |= {"instances counting": 5, "text understanding": 9}  # as the table's column `category` calls them


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


def options_in_question(reader: Reader) -> Reader:
    """Return a reader of questions as AI2D asks them: the options, one a line, end the question.

    The accepted answer is the text of the right option.
    """

    def read(files: Mapping[str, Path]) -> list[Record]:
        records = []
        for record in reader(files):
            texts = dict(zip(string.ascii_uppercase, record.options, strict=False))
            answers = tuple(texts.get(answer, answer) for answer in record.answers)
            question = record.question + "\n".join(record.options)
            records.append(replace(record, question=question, answers=answers, options=()))
        return records

    return read


def seed_table(files: Mapping[str, Path]) -> list[Record]:
    """Return the image questions of SEED-Bench's table, with the field `question_type_id` of each."""
    records = []
    for record in tsv.read(files):
        name = record.fields.get("category", "").strip().lower()
        if name not in SEED_TYPES:
            raise ValueError(
                f"{files['records']}, index {record.id}, column category: {name!r}; use one of {', '.join(SEED_TYPES)}"
            )
        extra = {"question_id": record.id, "question_type_id": SEED_TYPES[name], "data_type": "image"}
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
