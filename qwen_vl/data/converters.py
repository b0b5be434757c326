"""`qwen-vl data convert`: other formats to conversation files, and back (data/README.md)."""

import argparse
import functools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl.model.image_processing_qwen import find_picture

from . import box_formats, chat_formats, markup
from .checking import printable
from .conversations import MAX_SHOWN, check_entry, check_folder, entries, search_dirs
from .files import whole_file
from .opening import packed, plain_name
from .shards import is_among
from .skipping import own_id
from .validation import DataError, FieldError, Problem

FORMATS = ("ours", *chat_formats.FORMATS, "coco", "refcoco")


@dataclass
class Converted:
    """What became of a file: how much was read and written, and what was left out."""

    num_read: int = 0  # records with a conversation or a problem
    num_written: int = 0
    problems: list = field(default_factory=list)  # [Problem, ..] of records that are not in the result
    notes: Counter = field(default_factory=Counter)  # what is left out without being wrong


def convert(
    source,
    out,
    *,
    source_format,
    target_format="ours",
    image_folder=None,
    check_pictures=True,
    skip_errors=False,
    prompt=None,
    box_format="xywh",
):
    """Convert a file and return what became of it (`Converted`). OUT is written whole or not at all.

    Every record is one that `conversations.read` accepts, whatever is written in the end. With `check_pictures` local
    pictures must exist in `search_dirs(out, image_folder)`; sizes that the source does not have are read there.
    prompt: the question for COCO and RefCOCO, with {phrase}; box_format: "xywh" or "xyxy", of RefCOCO-style boxes.
    Raises DataError with all that cannot be converted, unless `skip_errors` leaves those records out.
    """
    check_folder(image_folder)
    result, folders = Converted(), search_dirs(out, image_folder)
    sizes = box_formats.Sizes(folders)
    exists = functools.cache(lambda reference: find_picture(reference, folders) is not None)
    records = []
    for place, record in _read(source, source_format, sizes, result.notes, prompt, box_format):
        result.num_read += 1
        problems = _problems(place, record, exists if check_pictures else None)
        if source_format != "ours" and not problems:
            problems = list(_leftovers(place, record, source_format, result.notes))
        result.problems += problems
        if not problems:
            records.append((place, record))
    content, errors = _written(records, target_format, sizes, result.notes, box_format)
    result.problems += [_problem(place, error) for place, error in errors]
    if result.problems and not skip_errors:
        raise DataError(_message(source, result, folders))
    result.num_written = len(content["annotations"] if target_format == "coco" else content)
    if not result.num_written:
        raise DataError(f"{source}: nothing to write, of {result.num_read} records; is it of format {source_format}?")
    with whole_file(out) as file:
        file.writelines(packed(_lines(content, plain_name(out).suffix == ".jsonl"), out))
    return result


def _read(source, form, sizes, notes, prompt, box_format):
    """Yields (place, our record, Problem or FieldError)."""
    if form == "coco":
        yield from box_formats.from_coco(source, sizes, notes, prompt)
    elif form == "refcoco":
        yield from box_formats.from_refcoco(source, sizes, notes, prompt, box_format)
    else:
        for place, record in entries(source, is_ours=form == "ours"):
            if form != "ours" and not isinstance(record, Problem):
                try:
                    record = chat_formats.to_ours(record, form, notes, sizes.of)
                except FieldError as error:
                    error.id = record.get("id") if isinstance(record, dict) else None
                    record = error
            yield place, record


def _problems(place, record, exists):
    """The Problems for which a record cannot be in the result."""
    if isinstance(record, FieldError):
        return [_problem(place, record)]
    return [problem for problem in check_entry(place, record, exists) if problem.is_error]


def _leftovers(place: str, record: dict, form: str, notes: Counter) -> Iterator[Problem]:
    """Yield a Problem for each text with markup of another format, which would be written as plain text.

    What may well be text, such as HTML, is counted in `notes` instead.
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


def _problem(place, error):
    return Problem(place, error.id, error.field, "cannot convert", str(error))


def _written(records, form, sizes, notes, box_format):
    """(what is written, [(place, FieldError), ..]) of [(place, our record), ..]."""
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


def _lines(content, as_lines):
    """The bytes of the file, in pieces: JSON Lines, or JSON with one record a line."""
    if isinstance(content, dict):
        yield _json(content) + b"\n"
        return
    yield b"" if as_lines else b"[\n"
    for index, record in enumerate(content):
        yield _json(record) + (b"\n" if as_lines or index == len(content) - 1 else b",\n")
    yield b"" if as_lines else b"]\n"


def _json(value):
    """A value as JSON in UTF-8, escaped where it holds half of a surrogate pair, which UTF-8 cannot say."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value).encode("utf-8")


def _message(source, result, folders):
    """All that is wrong as one text: the first problems in full, then how many there are."""
    name, problems = Path(source).name, result.problems
    lines = [
        f"{source}: {len(problems)} problem{'s' * (len(problems) > 1)} in {result.num_read} records; nothing written"
    ]
    lines += [f"  {name}{problem}" for problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  and {len(problems) - MAX_SHOWN} more")
    if any(problem.kind == "missing picture" for problem in problems):
        where, beside = ", ".join(folders), os.path.dirname(source) or "."
        lines.append(f"  Pictures were looked for in {where}; give --image_folder (beside the source: {beside}).")
    lines.append("  --skip_errors leaves these records out and lists them.")
    return "\n".join(lines)


# ---- the command ----------------------------------------------------------------------------------------------------


def main(argv):
    """Convert the file that the arguments name, and say what became of it."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.source_format == arguments.target_format:
        parser.error("--from and --to are the same")
    if os.path.realpath(arguments.source) == os.path.realpath(arguments.out):
        parser.error(f"OUT {arguments.out}: would overwrite SOURCE; give another name")
    if is_among(arguments.out, arguments.source):
        parser.error(f"OUT {arguments.out}: would be read as data of the folder SOURCE; put it elsewhere")
    if plain_name(arguments.out).suffix in (".parquet", ".arrow"):
        parser.error(f"OUT {arguments.out}: JSON is written; name it .json or .jsonl")
    if arguments.target_format == "coco" and plain_name(arguments.out).suffix == ".jsonl":
        parser.error("OUT: COCO's annotations are one JSON object; name it .json")
    if arguments.prompt is not None and "{phrase}" not in arguments.prompt:
        parser.error('--prompt: put {phrase} where the phrase belongs, as in "Where is {phrase}?"')
    options = vars(arguments)
    source, out, pictures = options.pop("source"), options.pop("out"), options.pop("pictures")
    result = convert(source, out, check_pictures=pictures == "exist", **options)
    unit = "boxes" if arguments.target_format == "coco" else "records"
    print(printable(f"{out}: {result.num_written:,} {unit} from {result.num_read:,} records of {source}"))
    for note, count in result.notes.most_common():
        print(printable(f"  {note} ({count:,} times)"))
    if result.problems:
        skipped = f"{out}.skipped.jsonl"
        with whole_file(skipped) as file:
            for problem in result.problems:
                line = {"file": source, "record": problem.place, "id": problem.id, "field": problem.field}
                line |= {"kind": problem.kind, "message": problem.message}
                file.write(_json(line) + b"\n")
        print(printable(f"  {len(result.problems):,} problems, whose records are left out: {skipped}"))


def _parser():
    parser = argparse.ArgumentParser(
        prog="qwen-vl data convert",
        description="Convert a file to the conversation format (data/README.md), or from it to another one.",
        epilog="SOURCE is JSON, JSON Lines, Parquet, Arrow or a folder of them; OUT a JSON list, or JSON Lines if it "
        "ends with .jsonl. COCO's are one JSON object. Both may be packed (.gz, .zst).",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add("out", metavar="OUT")
    add("--from", dest="source_format", choices=FORMATS, required=True, help="what SOURCE is")
    add("--to", dest="target_format", choices=FORMATS, default="ours", help="what OUT becomes (default: ours)")
    add("--image_folder", metavar="DIR", help="where relative pictures are looked for, after the folder of OUT")
    add("--pictures", choices=("exist", "any"), default="exist", help="whether local pictures must exist (default)")
    add("--prompt", metavar="TEXT", help='question for coco and refcoco, such as "框出图中的{phrase}"')
    add("--box_format", choices=("xywh", "xyxy"), default="xywh", help="of refcoco boxes in pixels (default: xywh)")
    add("--skip_errors", action="store_true", help="leave out what cannot be converted, and list it beside OUT")
    return parser
