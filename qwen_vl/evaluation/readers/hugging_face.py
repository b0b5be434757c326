"""Readers of local data sets of Hugging Face, in the layouts of lmms-lab: Parquet folders, and what `datasets` saves.

Roles: "records" is a file, a folder that `save_to_disk` wrote, or a folder with the files of the hub, in which `split`
and `config` are looked for. Nothing is downloaded, no image is decoded or kept in memory. Images with the same bytes
have one name. All texts and all accepted answers are kept as they stand.

Fields of the records: every column but question, hint, options, answers and images, under its own name, and what the
functions add. A record of options has the letter of the right one as its answer.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_vl.evaluation.records import ImageSource, Record

from .image_tables import ImageTables, TableRow, column_names
from .problems import Problems
from .tsv import literal

IDS = ("question_id", "questionId", "index", "id")
TEXTS = {"question", "hint", "answer", "answers", "options", "choices"}
CAPTIONS = ("annotations_captions", "caption", "captions")  # what the column may be called
HALLUSION = ("category", "subcategory", "set_id", "figure_id", "question_id")
LETTER = re.compile(r"[A-Z]")
NO_IMAGE = "has no image; get the complete data set"
NO_TEXT = "nan"  # of MMBench: what pandas made of an empty cell


def vqa(files: Mapping[str, Path], *, split: str = "validation", config: str | None = None) -> list[Record]:
    """Return the questions of VQAv2, OK-VQA, textvqa, VizWiz-VQA, DocVQA or InfographicVQA (configs of DocVQA).

    `answers` is a list of texts, or of objects with `answer`; null or empty in a test split. Fields: question_id (that
    column, or questionId), question_type and answer_type, answer_type of InfographicVQA as there.
    """

    def make(row: TableRow, name: str) -> Iterable[Record]:
        yield Record(name, _text(row, "question"), row.images, _answers(row), fields=_fields(row))

    return _records(files, make, split=split, config=config, needed=("question",))


def chartqa(files: Mapping[str, Path], *, kind: str, split: str = "test") -> list[Record]:
    """Return the questions of one half of ChartQA: `kind` is human_test or augmented_test, as in the column type."""

    def make(row: TableRow, name: str) -> Iterable[Record]:
        if row.cells["type"] == kind:
            yield Record(name, _text(row, "question"), row.images, _answers(row), fields=_fields(row))

    return _records(files, make, split=split, needed=("question", "answer", "type"))


def gqa(files: Mapping[str, Path], *, split: str = "testdev") -> list[Record]:
    """Return the questions of GQA: files["records"] has the instructions, files["images"] the images (two configs)."""
    sources: dict[str, ImageSource] = {}
    tables = ImageTables(files["images"], split=split, config="testdev_balanced_images")
    _check_columns(tables, ("id",))
    problems = Problems()
    for row in tables.rows():
        if row.images:
            sources[str(row.cells["id"])] = row.images[0]
        else:
            problems.add(f"{row.place}: {row.problem or NO_IMAGE}")
    problems.raise_if_any()

    def make(row: TableRow, name: str) -> Iterable[Record]:
        image = sources.get(str(row.cells["imageId"]))
        if image is None:
            raise ValueError(f"imageId {row.cells['imageId']!r} is not in {files['images']}; get its complete data set")
        yield Record(name, _text(row, "question"), (image,), _answers(row), fields=_fields(row))

    config = "testdev_balanced_instructions"
    return _records(files, make, split=split, config=config, needed=("question", "imageId"), images=False)


def choice(files: Mapping[str, Path], *, split: str = "test", config: str | None = None) -> list[Record]:
    """Return the questions of ai2d, ScienceQA (config ScienceQA-IMG), SEED-Bench, or another set with options.

    Options: the column options or choices (a list, or the text of a list literal), or choice_a, choice_b, .. The
    answer is a letter, or the place of the option from 0, as number or text. Without options (MMMU has such questions)
    it is the accepted answer. Fields that matter: question_type_id, data_type; subject, topic, grade.
    """

    def make(row: TableRow, name: str) -> Iterable[Record]:
        options = _options(row)
        answers = _letter(row, options) if options else tuple(text for said in _answers(row) for text in literal(said))
        yield _of_options(row, name, options, answers)

    return _records(files, make, split=split, config=config, needed=("question", "answer"))


def mmbench(files: Mapping[str, Path], *, split: str = "dev", config: str | None = None) -> list[Record]:
    """Return the questions of MMBench (config en, cn or cc).

    Fields: index, category, l2-category (there, L2-category); row has all columns but the image, for the submission.
    An empty hint or option has become the text nan there: as hint, and after the last option, it stands for none.
    """

    def make(row: TableRow, name: str) -> Iterable[Record]:
        columns = sorted(column for column in row.cells if LETTER.fullmatch(column))
        options = ["" if row.cells[column] is None else str(row.cells[column]) for column in columns]
        while options and options[-1].strip() in ("", NO_TEXT):
            options.pop()
        record = _of_options(row, name, options, _letter(row, options))
        others = {"L2-category": "l2-category", "l2_category": "l2-category"}
        fields = {others.get(key, key): value for key, value in record.fields.items()}
        fields["row"] = {others.get(key, key): value for key, value in row.cells.items()}
        hint = "" if record.hint == NO_TEXT else record.hint
        yield Record(name, record.question, record.images, record.answers, record.options, hint, fields=fields)

    return _records(files, make, split=split, config=config, needed=("question", "index", "A", "B"))


def grounding(files: Mapping[str, Path], *, split: str) -> list[Record]:
    """Return the expressions of RefCOCO, RefCOCO+ or RefCOCOg: a record for each of the list `answer` of a row.

    Fields: bbox as x1, y1, x2, y2 in pixels (x, y, width, height there), width and height of the image.
    """

    def make(row: TableRow, name: str) -> Iterable[Record]:
        box, size = row.cells["bbox"], row.sizes[0] if row.sizes else None
        if not isinstance(box, list) or len(box) != 4 or None in box:
            raise ValueError(f"bbox: {box!r:.80}; it must be [x, y, width, height]")
        if size is None:
            raise ValueError("image: has no size that can be read; get the file again")
        x, y, width, height = box
        fields = _fields(row) | {"bbox": [x, y, x + width, y + height], "width": size[0], "height": size[1]}
        for number, expression in enumerate(_answers(row)):
            yield Record(f"{name}/{number}", expression, row.images, fields=fields)

    return _records(files, make, split=split, needed=("bbox", "answer"))


def captions(files: Mapping[str, Path], *, split: str = "test") -> list[Record]:
    """Return the images of NoCaps or flickr30k with all captions of each.

    Fields: image_id (here image_id or img_id), domain where it is there. If a column `split` tells that a data set has
    more than one, the rows of `split` are taken.
    """

    def make(row: TableRow, name: str) -> Iterable[Record]:
        if row.cells.get("split", split) != split:
            return
        texts = _texts(next((row.cells[key] for key in CAPTIONS if row.cells.get(key)), None))
        fields = {key: value for key, value in _fields(row).items() if key not in CAPTIONS}
        fields["image_id"] = next((row.cells[key] for key in ("image_id", "img_id") if key in row.cells), name)
        yield Record(str(fields["image_id"]), "", row.images, texts, fields=fields)

    return _records(files, make, split=split, needed=CAPTIONS, is_any=True)


def mme(files: Mapping[str, Path], *, split: str = "test") -> list[Record]:
    """Return the questions of MME. Fields: category (the subtask), image_name. Ids: existence/0001.png/1, ../2."""
    numbers = Counter[str]()

    def make(row: TableRow, name: str) -> Iterable[Record]:
        numbers[name] += 1
        fields = _fields(row) | {"image_name": name.rsplit("/")[-1]}
        yield Record(f"{name}/{numbers[name]}", _text(row, "question"), row.images, _answers(row), fields=fields)

    return _records(files, make, split=split, needed=("question", "answer", "category", "question_id"))


def pope(files: Mapping[str, Path], *, split: str = "test") -> list[Record]:
    """Return the questions of POPE. Fields: split (random, popular or adversarial; there, category)."""

    def make(row: TableRow, name: str) -> Iterable[Record]:
        kind = _text(row, "category")
        yield Record(
            f"{kind}/{name}", _text(row, "question"), row.images, _answers(row), fields=_fields(row) | {"split": kind}
        )

    return _records(files, make, split=split, needed=("question", "answer", "category"))


def hallusion_bench(files: Mapping[str, Path], *, split: str = "image") -> list[Record]:
    """Return the questions of HallusionBench that have an image, with the answer Yes or No.

    Fields: category, subcategory, set_id, figure_id, question_id, gt_answer.
    """

    def make(row: TableRow, name: str) -> Iterable[Record]:
        key = "/".join(str(row.cells[part]) for part in HALLUSION)
        right = {"1": "Yes", "0": "No"}.get(str(row.cells["gt_answer"]))
        if right is None:
            raise ValueError(f"gt_answer: {row.cells['gt_answer']!r}; it must be 0 or 1")
        if row.images:
            yield Record(key, _text(row, "question"), row.images, (right,), fields=_fields(row))

    return _records(files, make, split=split, needed=("question", "gt_answer", *HALLUSION))


def ocr_bench(files: Mapping[str, Path], *, split: str = "test") -> list[Record]:
    """Return the questions of OCRBench. Fields: type (there, question_type), dataset."""

    def make(row: TableRow, name: str) -> Iterable[Record]:
        fields = _fields(row) | {"type": _text(row, "question_type")}
        yield Record(name, _text(row, "question"), row.images, _answers(row), fields=fields)

    return _records(files, make, split=split, needed=("question", "answer", "question_type"))


# ---- parts ----------------------------------------------------------------------------------------------------------


def _records(
    files: Mapping[str, Path],
    make: Callable[[TableRow, str], Iterable[Record]],
    *,
    split: str,
    needed: Sequence[str],
    config: str | None = None,
    images: bool = True,
    is_any: bool = False,
) -> list[Record]:
    """Return the records that `make(row, id of the row)` makes of all rows; raise ValueError with all problems.

    The id is that of the first of IDS that is a column, else the number of the row. needed: the columns that must be
    there, or of which one must (is_any). images: whether each record needs one.
    """
    tables = ImageTables(files["records"], split=split, config=config)
    _check_columns(tables, needed, is_any=is_any)
    column = next((name for name in IDS if name in tables.columns), None)
    records, problems, places = [], Problems(), dict[str, str]()
    for number, row in enumerate(tables.rows()):
        try:
            if row.problem:
                raise ValueError(row.problem)
            for record in make(row, str(number if column is None else row.cells[column])):
                if images and not record.images:
                    raise ValueError(NO_IMAGE)
                if record.id in places:
                    raise ValueError(f"id {record.id!r} was used at {places[record.id]}; use each id once")
                places[record.id] = row.place
                records.append(record)
        except ValueError as error:
            problems.add(f"{row.place}: {error}")
    problems.raise_if_any()
    if not records:
        raise ValueError(f"{files['records']}: no rows of split {split!r}; get the complete data set")
    return records


def _check_columns(tables: ImageTables, needed: Sequence[str], *, is_any: bool = False) -> None:
    missing = [name for name in needed if name not in tables.columns]
    if missing and not (is_any and len(missing) < len(needed)):
        names = column_names([*tables.columns, *tables.image_columns])
        raise ValueError(f"{tables.path}: no column {', '.join(missing)}; its columns are {names}")


def _fields(row: TableRow) -> dict[str, Any]:
    fields = {name: cell for name, cell in row.cells.items() if name not in TEXTS}
    if "questionId" in fields:
        fields.setdefault("question_id", fields["questionId"])
    return fields


def _text(row: TableRow, column: str) -> str:
    value = row.cells[column]
    if not isinstance(value, str):
        raise ValueError(f"{column}: {value!r:.80}; it must be a text")
    return value


def _answers(row: TableRow) -> tuple[str, ...]:
    """Return the accepted answers of a row; none if it has none, or only empty ones, as in a test split."""
    texts = _texts(row.cells.get("answers") if row.cells.get("answers") is not None else row.cells.get("answer"))
    return texts if any(texts) else ()


def _texts(value: Any) -> tuple[str, ...]:
    """Return the texts of a cell: a text or number, or a list of them or of objects with `answer`."""
    parts = value if isinstance(value, list) else [] if value is None else [value]
    texts = [part.get("answer") if isinstance(part, dict) else part for part in parts]
    wrong = [text for text in texts if isinstance(text, bool) or not isinstance(text, str | int | float)]
    if wrong:
        raise ValueError(f"answers: {wrong[0]!r:.80}; they must be texts")
    return tuple(str(text) for text in texts)


def _options(row: TableRow) -> list[str]:
    value = next((row.cells[name] for name in ("options", "choices") if row.cells.get(name) is not None), None)
    if value is None:
        names = sorted(name for name in row.cells if re.fullmatch("choice_[a-z]", name))
        value = [row.cells[name] for name in names if row.cells[name] is not None]
    if isinstance(value, str):
        value = [] if value.strip() in ("", "[]") else literal(value)
    return list(_texts(value))


def _letter(row: TableRow, options: Sequence[str]) -> tuple[str, ...]:
    """Return the letter of the right option, none in a test split; raise ValueError if no option has it."""
    value = row.cells.get("answer")
    if value is None or value in ("", NO_TEXT):
        return ()
    said = str(value).strip()
    place = int(said) if said.isdecimal() else ord(said) - ord("A") if LETTER.fullmatch(said) else -1
    if not 0 <= place < len(options):
        raise ValueError(
            f"answer: {value!r:.80}; it must be the letter, or the place from 0, of one of {len(options)} options"
        )
    return (chr(ord("A") + place),)


def _of_options(row: TableRow, name: str, options: Sequence[str], answers: tuple[str, ...]) -> Record:
    hint = row.cells.get("hint")
    fields = {key: value for key, value in _fields(row).items() if not re.fullmatch("choice_[a-z]", key)}
    hint = hint if isinstance(hint, str) else ""
    return Record(name, _text(row, "question"), row.images, answers, tuple(options), hint, fields=fields)
