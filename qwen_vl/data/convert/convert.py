"""`qwen-vl data convert`: other formats to conversation files, and back (docs/data.md)."""

import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vl.data import image_files, markup
from qwen_vl.data.conversations import MAX_SHOWN, check_entry, check_folder, entries, search_dirs
from qwen_vl.data.skip_manifests import own_id
from qwen_vl.data.sources.opening import packed, plain_name
from qwen_vl.data.validation import DataError, FieldError, Problem
from qwen_vl.files import whole_file

from . import box_formats, chat_formats

Content = list[dict[str, Any]] | dict[str, Any]  # of a file: records, or the object of COCO
Placed = tuple[str, dict[str, Any]]  # (place, our record)
FORMATS = ("ours", *chat_formats.FORMATS, "coco", "refcoco")


@dataclass
class Converted:
    """The result of a conversion: how much was read and written, and what was skipped."""

    num_read: int = 0  # records with a conversation or a problem
    num_written: int = 0
    problems: list[Problem] = field(default_factory=list)  # of records that are not in the result
    notes: Counter[str] = field(default_factory=Counter)  # what is left out without being wrong


def convert(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    source_format: str,
    target_format: str = "ours",
    image_folder: str | None = None,
    check_images: bool = True,
    skip_errors: bool = False,
    prompt: str | None = None,
    box_format: str = "xywh",
) -> Converted:
    """Convert a file and return the Converted. OUT is written completely or not at all.

    `conversations.read` accepts every converted record, also with another target format. With `check_images` local
    images must exist in `search_dirs(out, image_folder)`. Sizes that the source lacks are read there.
    prompt: the question for COCO and RefCOCO, with {phrase}. box_format: "xywh" or "xyxy", of RefCOCO-style boxes.
    Raise DataError with all problems, unless `skip_errors` skips the records that cannot be converted.
    """
    check_folder(image_folder)
    result, folders = Converted(), search_dirs(out, image_folder)
    sizes = box_formats.Sizes(folders)
    exists = functools.cache(lambda reference: image_files.exists(reference, folders))
    records = []
    for place, record in _read(source, source_format, sizes, result.notes, prompt, box_format):
        result.num_read += 1
        problems = _problems(place, record, exists if check_images else None)
        if source_format != "ours" and not problems:
            problems = list(_leftovers(place, record, source_format, result.notes))
        result.problems += problems
        if not problems:
            records.append((place, record))
    content, errors = _written(records, target_format, sizes, result.notes, box_format)
    result.problems += [_problem(place, error) for place, error in errors]
    if result.problems and not skip_errors:
        raise DataError(_message(source, result, folders))
    result.num_written = len(content["annotations"] if isinstance(content, dict) else content)
    if not result.num_written:
        raise DataError(f"{source}: nothing to write, of {result.num_read} records; is it of format {source_format}?")
    with whole_file(out) as file:
        file.writelines(packed(_lines(content, plain_name(out).suffix == ".jsonl"), out))
    return result


def _read(
    source: str | os.PathLike,
    form: str,
    sizes: box_formats.Sizes,
    notes: Counter[str],
    prompt: str | None,
    box_format: str,
) -> Iterator[tuple[str, Any]]:
    """Yield (place, our record or Problem or FieldError)."""
    if form == "coco":
        yield from box_formats.from_coco(source, sizes, notes, prompt)
    elif form == "refcoco":
        yield from box_formats.from_refcoco(source, sizes, prompt, box_format)
    else:
        for place, record in entries(source, is_ours=form == "ours"):
            if form != "ours" and not isinstance(record, Problem):
                try:
                    record = chat_formats.to_ours(record, form, notes, sizes.of)
                except FieldError as error:
                    error.id = record.get("id") if isinstance(record, dict) else None
                    record = error
            yield place, record


def _problems(place: str, record: object, exists: Callable[[str], bool] | None) -> list[Problem]:
    """Return the Problems that keep a record out of the result."""
    if isinstance(record, FieldError):
        return [_problem(place, record)]
    return [problem for problem in check_entry(place, record, exists) if problem.is_error]


def _leftovers(place: str, record: dict, form: str, notes: Counter) -> Iterator[Problem]:
    """Yield a Problem for each text with markup of another format, which would be written as plain text.

    Markup that may well be text, such as HTML, is counted in `notes` instead.
    """
    texts = [("system", record.get("system", ""))]
    texts += [(f"conversations[{index}].value", turn["value"]) for index, turn in enumerate(record["conversations"])]
    for where, text in texts:
        for mark in markup.found(text):
            if mark.trait == "weak":
                notes[f"{mark.name} ({mark.format}) stays as text"] += 1
                continue
            cure = "remove it, or put it in quotes if it is text"
            if mark.convert and mark.convert != form and form in chat_formats.FORMATS:
                cure = f"is the file of another format? Try --from {mark.convert}"
            message = f"{mark.name} ({mark.format}) would stay as text; {cure}"
            yield Problem(place, own_id(record), where, "cannot convert", message)


def _problem(place: str, error: FieldError) -> Problem:
    return Problem(place, error.id, error.field, "cannot convert", str(error))


def _written(
    records: Sequence[Placed], form: str, sizes: box_formats.Sizes, notes: Counter[str], box_format: str
) -> tuple[Content, Sequence[tuple[str, FieldError]]]:
    """Return the content to write, and (place, FieldError) of each record that cannot be converted."""
    if form == "coco":
        return box_formats.to_coco(records, sizes, notes)
    if form == "refcoco":
        return box_formats.to_refcoco(records, sizes, notes, box_format)
    if form == "ours":
        return [record for _, record in records], []
    content, errors = [], []
    for place, record in records:
        try:
            content.append(chat_formats.from_ours(record, form))
        except FieldError as error:
            error.id = record.get("id")
            errors.append((place, error))
    return content, errors


def _lines(content: Content, as_lines: bool) -> Iterator[bytes]:
    """Yield the bytes of the file in pieces: JSON Lines, or JSON with one record a line."""
    if isinstance(content, dict):
        yield _json(content) + b"\n"
        return
    yield b"" if as_lines else b"[\n"
    for index, record in enumerate(content):
        yield _json(record) + (b"\n" if as_lines or index == len(content) - 1 else b",\n")
    yield b"" if as_lines else b"]\n"


def _json(value: object) -> bytes:
    """Return a value as JSON in UTF-8, with escapes if it holds half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value).encode("utf-8")


def _message(source: str | os.PathLike, result: Converted, folders: Sequence[str]) -> str:
    """Return the problems as one text: the first in full, then how many there are."""
    name, problems = Path(source).name, result.problems
    lines = [
        f"{source}: {len(problems)} problem{'s' * (len(problems) > 1)} in {result.num_read} records; nothing written"
    ]
    lines += [f"  {name}{problem}" for problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  and {len(problems) - MAX_SHOWN} more")
    if any(problem.kind == "missing image" for problem in problems):
        where, beside = ", ".join(folders), os.path.dirname(source) or "."
        lines.append(f"  Images were looked for in {where}; give --image_folder (beside the source: {beside}).")
    lines.append("  --skip_errors leaves these records out and lists them.")
    return "\n".join(lines)
