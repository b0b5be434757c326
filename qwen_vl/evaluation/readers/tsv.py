"""Reader of the tables of VLMEvalKit (.tsv): one question a row, images as base64 text in the cells.

Columns: index, question, and image or image_path; if they are there: hint, A, B, .. (options), answer, and any others.
- image is the base64 text of an image, a list literal of several, or a value of at most 64 characters: the index of
  the row that has the image. image_path names a file or is a list literal of names.
- answer is a letter where there are options, else a text or a list literal of texts that are all accepted.
All text is kept as it stands: `None`, `NA` and `null` are options like others. Only empty options are left out.

The records have: id = index; images; question; hint; options; answers = the letter of the right option (that of its
place in `options`), or all accepted texts; fields = every column but image and image_path, under its name, as text.
An index that a spreadsheet made a decimal (`3.0`) is a whole number again. No image is kept in memory: an ImageSource
reads its row again. Images with the same bytes have one name, whatever rows they are in.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qwen_vl.evaluation.records import ImageSource, Record

from .encoded_images import check_image, from_base64
from .problems import Problems
from .tables import Row, Table

LONGEST_INDEX = 64  # characters: a longer value of the column image is an image
WHOLE_FLOAT = re.compile(r"([0-9]+)\.0+")
ROTATION = 1_000_000  # of MMBench: the difference of the indices of a question's rotations
IMAGE_COLUMNS = ("image", "image_path")
TOUCHSTONE_COLUMNS = ("human_annotation", "gpt4_ha_answer", "category", "task_name")


def read(files: Mapping[str, Path]) -> list[Record]:
    """Return the records of the table files["records"], in its order; see the module.

    files["images"], if given, is the folder of the files in image_path, otherwise that of the table is.
    Raise ValueError, which names file, line, column and what to do, for a table that lacks a column, an index twice, a
    row whose image is missing, cut or that of an index that is not there, an answer that no option has; OSError.
    """
    path = files["records"]
    return _records(path, files.get("images", path.parent))


def mmbench(files: Mapping[str, Path]) -> list[Record]:
    """Return what `read` does of MMBench or CCBench: rotation k of question i has the index i + k * 1,000,000.

    Raise ValueError if an index is no whole number, or if a rotation is there without its question i.
    """
    records, problems = read(files), Problems()
    indices = {record.id for record in records}
    for record in records:
        if not record.id.isdecimal():
            problems.add(f"{files['records']}, index {record.id}: is no whole number, which tells the rotations")
        elif str(int(record.id) % ROTATION) not in indices:
            problems.add(
                f"{files['records']}, index {record.id}: is a rotation of {int(record.id) % ROTATION}, which is not "
                "there; get the complete file"
            )
    problems.raise_if_any()
    return records


def pope(files: Mapping[str, Path]) -> list[Record]:
    """Return what `read` does of POPE, a record for each split of a row; fields also has split.

    The column category has the splits of a row: `random,popular` makes the records 7/random and 7/popular of index 7.
    """
    _check_columns(Table.open(files["records"]), ("category", "answer"))
    return [
        replace(record, id=f"{record.id}/{split.strip()}", fields={**record.fields, "split": split.strip()})
        for record in read(files)
        for split in dict.fromkeys(record.fields["category"].split(","))
    ]


def ocr_bench(files: Mapping[str, Path]) -> list[Record]:
    """Return what `read` does of OCRBench; fields also has type, which is the column category."""
    _check_columns(Table.open(files["records"]), ("category", "answer"))
    return [replace(record, fields={**record.fields, "type": record.fields["category"]}) for record in read(files)]


def hallusion_bench(files: Mapping[str, Path]) -> list[Record]:
    """Return what `read` does of HallusionBench, without rows that have no image.

    fields also has subcategory, set_id, figure_id, question_id and gt_answer ("0" or "1"). Where the table has no such
    columns they are l2-category, the last three parts of the index (VD_video_1_0_2_3), and the answer Yes or No.
    """
    path = files["records"]
    problems, complete = Problems(), []
    for record in _records(path, files.get("images", path.parent), skip_without_image=True):
        parts = dict(zip(("set_id", "figure_id", "question_id"), record.id.split("_")[-3:], strict=False))
        fields = {**parts, "subcategory": record.fields.get("l2-category", ""), **record.fields}
        right = record.answers[0].strip().lower() if record.answers else fields.get("gt_answer", "")
        fields["gt_answer"] = {"yes": "1", "no": "0"}.get(right, right)
        if fields["gt_answer"] not in ("0", "1") or not {"set_id", "figure_id", "question_id"} <= fields.keys():
            problems.add(
                f"{path}, index {record.id}: needs an answer Yes or No, and set_id, figure_id, question_id in columns "
                "or at the end of the index (VD_video_1_0_2_3)"
            )
        complete.append(
            replace(record, answers=({"1": "Yes", "0": "No"}.get(fields["gt_answer"], right),), fields=fields)
        )
    problems.raise_if_any()
    return complete


def touchstone(files: Mapping[str, Path]) -> list[Record]:
    """Return what `read` does of TouchStone: no answers; fields has human_annotation, gpt4_ha_answer and the others.

    Raise ValueError if one of these columns is missing.
    """
    path = files["records"]
    _check_columns(Table.open(path), TOUCHSTONE_COLUMNS)
    return _records(path, files.get("images", path.parent))


def literal(text: str) -> list[str]:
    """Return the texts of a cell: those of a list literal of texts and numbers, or the cell itself; never run code."""
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]"):
        try:
            value = ast.literal_eval(stripped)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [text]
        if isinstance(value, list) and value and all(type(part) in (str, int, float) for part in value):
            return [str(part) for part in value]
    return [text]


# ---- the table ------------------------------------------------------------------------------------------------------


def _records(path: Path, images: Path, skip_without_image: bool = False) -> list[Record]:
    table = Table.open(path)
    _check_columns(table, ("index", "question"))
    if not set(IMAGE_COLUMNS) & set(table.columns):
        raise ValueError(f"{path}:1: no column image or image_path; its columns are {_names(table)}")
    reader, records = _TableReader(table, images), []
    for row in table.rows():
        has_image = any(row.cells.get(column, "").strip() for column in IMAGE_COLUMNS)
        if has_image or not skip_without_image:
            records.append(reader.record(row))
    reader.problems.raise_if_any()
    if not records:
        raise ValueError(f"{path}: no rows; give a complete file")
    records = [replace(record, images=tuple(reader.images_of(record.id))) for record in records]
    reader.problems.raise_if_any()
    return records


def _check_columns(table: Table, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise ValueError(f"{table.path}:1: no column {', '.join(missing)}; its columns are {_names(table)}")


def _names(table: Table) -> str:
    return f"{', '.join(name for name in table.columns if name):.300}"


class _TableReader:
    """What is known while a table is read: the images of each index, and references to those of other rows."""

    def __init__(self, table: Table, images: Path) -> None:
        self.table, self.folder = table, images
        self.letters = [column for column in table.columns if re.fullmatch("[A-Z]", column)]
        self.letters.sort()
        self.problems = Problems()
        self.lines: dict[str, int] = {}
        self.sources: dict[str, list[ImageSource | str]] = {}  # a str is the index of another row
        self.by_digest: dict[bytes, ImageSource] = {}

    def record(self, row: Row) -> Record:
        """Return the record of a row, without images; these are looked up when all rows are known."""
        cells = dict(row.cells)
        index = cells["index"] = _whole(cells["index"])
        where = f"{self.table.path}:{row.line}, index {index or '(none)'}"
        if index in self.lines:
            self.problems.add(f"{where}: line {self.lines[index]} has that index, too; each must be there once")
        elif not index:
            self.problems.add(f"{where}, column index: is empty; number the rows")
        if not cells["question"].strip():
            self.problems.add(f"{where}, column question: is empty; get the file again or remove the row")
        self.lines.setdefault(index, row.line)
        self.sources.setdefault(index, list(self._sources(row, index, where)))
        letters = [letter for letter in self.letters if cells[letter].strip()]
        return Record(
            id=index,
            question=cells["question"],
            answers=self._answers(cells, letters, where),
            options=tuple(cells[letter] for letter in letters),
            hint=cells.get("hint", ""),
            fields={name: cell for name, cell in cells.items() if name and name not in IMAGE_COLUMNS},
        )

    def images_of(self, index: str, on_the_way: tuple[str, ...] = ()) -> Iterator[ImageSource]:
        """Yield the images of a row, those of the rows that it refers to among them. on_the_way: who refers to it."""
        on_the_way = (*on_the_way, index)
        for source in self.sources[index]:
            if isinstance(source, ImageSource):
                yield source
            elif source in self.sources and source not in on_the_way:
                yield from self.images_of(source, on_the_way)
            else:
                self.problems.add(
                    f"{self.table.path}:{self.lines[index]}, index {index}, column image: {source!r} is neither an "
                    "image nor the index of another row that has one; get the complete file"
                )

    def _answers(self, cells: Mapping[str, str], letters: Sequence[str], where: str) -> tuple[str, ...]:
        answer = cells.get("answer", "")
        if not answer.strip():
            return ()
        if not letters:
            return tuple(literal(answer))
        said = literal(answer)[0].strip()
        if said not in letters:  # some tables have the text of the option, or small letters
            said = next((letter for letter in letters if cells[letter].strip() == said), said.upper())
        if said not in letters:
            self.problems.add(f"{where}, column answer: {answer!r:.60} is none of its options {', '.join(letters)}")
            return ()
        return (chr(ord("A") + letters.index(said)),)

    def _sources(self, row: Row, index: str, where: str) -> Iterator[ImageSource | str]:
        """Yield the images of a row in order, or the index of the row that has one."""
        cell = row.cells.get("image", "")
        if not cell.strip():
            yield from self._files(row.cells.get("image_path", ""), where)
            return
        for place, value in enumerate(literal(cell)):
            try:
                content = from_base64(value)
                check_image(content)
            except ValueError as error:
                if len(value.strip()) <= LONGEST_INDEX:
                    yield _whole(value)
                    continue
                self.problems.add(f"{where}, column image: {error}; the image is cut or damaged: get the file again")
                continue
            name = f"{self.table.path.name}:{index}" + (f"#{place + 1}" if place else "")
            read = functools.partial(_image_bytes, self.table, row.offset, place)
            digest = hashlib.sha256(content).digest()
            yield self.by_digest.setdefault(digest, ImageSource(name, read))

    def _files(self, cell: str, where: str) -> Iterator[ImageSource]:
        if not cell.strip():
            self.problems.add(f"{where}: has no image; get the complete file or remove the row")
            return
        for name in literal(cell):
            path = self.folder / name.strip()
            if not path.is_file():
                self.problems.add(f"{where}, column image_path: {path} is no file; correct it or give the image folder")
            yield ImageSource.from_file(path)


def _image_bytes(table: Table, offset: int, place: int) -> bytes:
    """Return the bytes of an image of the row at `offset`; raise OSError if the table was changed meanwhile."""
    try:
        return from_base64(literal(table.cell(offset, "image"))[place])
    except (ValueError, IndexError) as error:
        raise OSError(f"{table.path} is not the file any more that was read at the start") from error


def _whole(index: str) -> str:
    """Return an index without the outer space and the `.0` that tools add."""
    match = WHOLE_FLOAT.fullmatch(index.strip())
    return match[1] if match else index.strip()
