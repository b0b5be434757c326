"""Submission files: what the servers and tools of the benchmarks take.

Each function writes into a folder, which it makes if need be, and returns the paths. A file is there in full or not at
all. Ids come from the fields that the benchmark's own files have (question_id, questionId, image_id, example_id), else
from the record's id.
"""

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from qwen_vl.evaluation.metrics.breakdown import text_of
from qwen_vl.evaluation.metrics.letters import chosen_option, letter_of
from qwen_vl.evaluation.metrics.result import Pair
from qwen_vl.files import whole_file

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|[\ud800-\udfff]")  # what XML cannot hold
BOX = re.compile(r"\((.*?)\),\((.*?)\)")
GRID = 999  # as in metrics/grounding.py, which scores these boxes
MILLION = 1_000_000
SPACES = str.maketrans("\n\r\t", "   ")


def vqav2(folder: Path, pairs: Sequence[Pair], *, other_ids: Iterable[int] = ()) -> list[Path]:
    """Write vqav2.json: [{"question_id": int, "answer": str}], and return its path.

    other_ids: ids of the questions of the whole test set, which the server expects; those without a record get "".
    Without them, the field `other_question_ids` of a record is taken, if one has it.
    """
    answers = {_number(pair, "question_id"): text_of(pair) for pair in pairs}
    named = (pair.record.fields.get("other_question_ids") for pair in pairs)
    others = other_ids or next((ids for ids in named if ids), ())
    answers |= {int(number): "" for number in others if int(number) not in answers}
    return _json(folder / "vqav2.json", [{"question_id": number, "answer": text} for number, text in answers.items()])


def textvqa(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write textvqa.json: [{"question_id": int, "answer": str}], and return its path."""
    rows = [{"question_id": _number(pair, "question_id"), "answer": text_of(pair)} for pair in pairs]
    return _json(folder / "textvqa.json", rows)


def vizwiz(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write vizwiz.json: [{"image": name of the image file, "answer": str}] in file order, and return its path."""
    rows = [{"image": _vizwiz_image(pair), "answer": text_of(pair)} for pair in pairs]
    return _json(folder / "vizwiz.json", rows)


def docvqa(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write docvqa.json: [{"questionId": int, "answer": str}], and return its path. For InfographicVQA, too."""
    rows = [{"questionId": _number(pair, "questionId", "question_id"), "answer": text_of(pair)} for pair in pairs]
    return _json(folder / "docvqa.json", rows)


def captions(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write captions.json: [{"image_id": int, "caption": str}], and return its path. For COCO and NoCaps."""
    rows = [{"image_id": _number(pair, "image_id"), "caption": text_of(pair)} for pair in pairs]
    return _json(folder / "captions.json", rows)


def seed_bench(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write seed_bench.jsonl, {"question_id": str, "prediction": "A".."D"} a line, and return its path.

    An answer from which no letter can be read has the prediction "".
    """
    rows = [
        {"question_id": str(_id(pair, "question_id")), "prediction": letter_of(chosen_option(pair))} for pair in pairs
    ]
    return [_write(folder / "seed_bench.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())]


def mmbench(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write mmbench.xlsx, a row for every rotation, and return its path.

    Its columns are those of the record's field `row`, or else all fields, and prediction: a letter, or "".
    Raise ValueError if the library openpyxl is missing.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
    except ImportError as error:
        raise ValueError("mmbench.xlsx needs openpyxl: pip install openpyxl, and score again") from error
    rows = [
        {**pair.record.fields.get("row", pair.record.fields), "prediction": letter_of(chosen_option(pair))}
        for pair in pairs
    ]
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "prediction"]
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append([*columns, "prediction"])
    for row in rows:
        cells = [WriteOnlyCell(sheet, value=_cell(name, row.get(name))) for name in (*columns, "prediction")]
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"  # "=1+1" and "#N/A" are text
        sheet.append(cells)
    packed = io.BytesIO()
    book.save(packed)
    return [_write(folder / "mmbench.xlsx", packed.getvalue())]


def mme(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write mme/SUBTASK.txt, lines `image\\tquestion\\tYes|No\\tanswer`, and return the paths (14 of the whole set).

    SUBTASK is the field `category`, image the field `image_name`, or else the file of the image. The questions of an
    image stand in consecutive lines. Newlines and tabs of a text become spaces.
    """
    subtasks: dict[str, dict[str, list[str]]] = {}
    for pair in pairs:
        record = pair.record
        if not record.answers:
            raise ValueError(f"MME: record {record.id!r} has no right answer; its lines need Yes or No")
        name = record.fields.get("image_name") or re.split(r"[\\/]", record.images[0].name)[-1]
        cells = (name, record.question, record.answers[0].strip().capitalize(), text_of(pair))
        line = "\t".join(cell.translate(SPACES) for cell in cells) + "\n"
        subtask = str(record.fields["category"])
        subtasks.setdefault(subtask, {}).setdefault(record.cluster, []).append(line)
    return [
        _write(
            folder / "mme" / f"{PurePath(subtask).name}.txt",
            "".join(line for lines in images.values() for line in lines).encode(),
        )
        for subtask, images in subtasks.items()
    ]


def grit(folder: Path, pairs: Sequence[Pair], *, split: str = "", num_parameters: int = 9_656_935_168) -> list[Path]:
    """Write grit.zip and return its path: SPLIT/params.json and SPLIT/refexp.json with a box in pixels a record.

    split: ablation or test; by default the field `split` of the first record, and ablation if it has none.
    num_parameters: of the model; by default those of the published one. An answer without a box has (0, 0, 0, 0) and
    the confidence 0.
    """
    split = split or str(pairs[0].record.fields.get("split") or "ablation" if pairs else "ablation")
    rows = []
    for pair in pairs:
        box = _pixel_box(text_of(pair), pair.record.fields["width"], pair.record.fields["height"])
        name = _id(pair, "example_id")
        rows.append({"example_id": name, "confidence": float(box is not None), "bboxes": [box or [0, 0, 0, 0]]})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (
            ("params.json", {"params_in_millions": round(num_parameters / MILLION)}),
            ("refexp.json", rows),
        ):
            entry = zipfile.ZipInfo(f"{split}/{name}")  # of 1980: the same answers give the same bytes
            archive.writestr(entry, json.dumps(content, ensure_ascii=False), zipfile.ZIP_DEFLATED)
    return [_write(folder / "grit.zip", packed.getvalue())]


def touchstone(folder: Path, pairs: Sequence[Pair]) -> list[Path]:
    """Write touchstone.tsv, the columns of the data set but the image, and response; return its path.

    A cell with a tab, a newline or a double quote stands in double quotes.
    """
    rows = [{**pair.record.fields.get("row", pair.record.fields), "response": text_of(pair)} for pair in pairs]
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "response"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, "response"], delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return [_write(folder / "touchstone.tsv", text.getvalue().encode())]


# ---- parts ----------------------------------------------------------------------------------------------------------


def _id(pair: Pair, *names: str) -> Any:
    """Return the first of these fields that the record has, else its id."""
    fields = pair.record.fields
    return next((fields[name] for name in names if fields.get(name) is not None), pair.record.id)


def _number(pair: Pair, *names: str) -> int:
    """Return an id as the whole number that a server wants; raise ValueError if it is none."""
    value = _id(pair, *names)
    try:
        return int(value)
    except ValueError as error:
        raise ValueError(
            f"record {pair.record.id!r}: {names[0]} {value!r} is no whole number, as the server wants; use the ids "
            "of the original file"
        ) from error


def _vizwiz_image(pair: Pair) -> str:
    """Return the name of the image file, which in the converted files is the question's id."""
    name = str(_id(pair, "question_id"))
    if PurePath(name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
        name = pair.record.images[0].name if pair.record.images else name
    return re.split(r"[\\/]", name)[-1]


def _cell(name: str, value: object) -> object:
    """Return what a spreadsheet can hold: numbers as they are, all else as text; the index as a whole number."""
    if value is None or value == "":
        return None
    if isinstance(value, bool | int | float):
        return value
    text = CONTROL.sub("", str(value))
    return int(text) if name == "index" and text.isdecimal() and len(text) < 16 else text


def _pixel_box(text: str, width: float, height: float) -> list[int] | None:
    """Return the first box of an answer as [x1, y1, x2, y2] in whole pixels; None if it has none."""
    match = BOX.search(text)
    try:
        numbers = [[float(number) for number in corner.split(",")] for corner in match.groups()] if match else []
        (x1, y1), (x2, y2) = numbers
        shares = np.asarray([x1, y1, x2, y2], dtype=np.float32) / np.float32(GRID)
        return [int(value) for value in (shares * np.asarray([width, height] * 2, dtype=np.float32)).tolist()]
    except (ValueError, OverflowError):  # words between the brackets, or no number that an image could have
        return None


def _json(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    return [_write(path, json.dumps(rows).encode())]


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)
    return path
