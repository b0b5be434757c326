"""JSON Lines in the form of the published converted files: one question, or one expression, a line.

Image paths are relative to the folder that holds `data/` (role "root"). Fields of records: `question_id` as it is in
the file; for grounding `bbox` in pixels, `width`, `height`; where there are options, the answer is a letter.
"""

import functools
import io
import itertools
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_vl.evaluation.records import Record

from .reading import Images, Row, collect, json_file, json_lines, json_rows

SEED_PROMPT = re.compile(r"(?:<img>(.*?)</img>\n)+Question: (.*)\nOptions: (.*)\nAnswer:", re.DOTALL)
SEED_IMAGE = re.compile(r"<img>(.*?)</img>\n")
LETTER_START = re.compile(r"(?:^|\n)([A-D])\. ")
LETTERS = string.ascii_uppercase


def images_of(files: Mapping[str, Path], role: str = "records") -> Images:
    """Return the images of a benchmark: below --data_dir, else beside the file that names them."""
    return Images(files["root"], files[role].parent)


def vqa(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a file {"image", "question", "question_id", "answer"}.

    `answer` is a text or a list of accepted ones, and may be missing.
    """
    images = images_of(files)

    def make(row: Row) -> Record:
        name = row.id("question_id")
        image = images.find(row, row.text("image"))
        return Record(str(name), row.text("question"), (image,), row.texts("answer"), fields={"question_id": name})

    return collect(json_lines(files["records"]), make)


def grounding(files: Mapping[str, Path]) -> list[Record]:
    """Return the expressions of a file {"image", "sent", "bbox", "width", "height"}; ids count lines from 0."""
    images, count = images_of(files), itertools.count()

    def make(row: Row) -> Record:
        number = next(count)
        width, height = row.number("width"), row.number("height")
        if min(width, height) <= 0:
            raise row.error(f"width, height: {width}, {height}; use the size of the image in pixels")
        box = {"bbox": row.numbers("bbox", 4), "width": width, "height": height}
        return Record(str(number), row.text("sent"), (images.find(row, row.text("image")),), fields=box)

    return collect(json_lines(files["records"]), make)


def grit(files: Mapping[str, Path], *, split: str = "ablation") -> list[Record]:
    """Return the expressions of GRIT's refexp task: JSON Lines or a JSON list of {"example_id", ..}.

    The image is `image` or `image_id`, the expression `sent` or `task_query`, the box `bbox` or the first of
    `output.bboxes`, missing in the test split. Without `width` and `height` the size is read from the image's header.
    Fields: `example_id`, `split` (for the submission file), and those of `grounding`.
    """
    path = files["records"]
    images = Images(files["root"], path.parent, *([files["images"]] if "images" in files else []))

    def make(row: Row) -> Record:
        name = row.id("example_id")
        image = images.find(row, row.text("image" if "image" in row.values else "image_id"))
        fields: dict[str, Any] = {"example_id": name, "split": split}
        output = row.values.get("output")
        boxes = output.get("bboxes") if isinstance(output, dict) else None
        values = dict(row.values) | ({"bbox": boxes[0]} if isinstance(boxes, list) and boxes else {})
        if values.get("bbox") is not None:
            fields["bbox"] = Row(row.place, values).numbers("bbox", 4)
        if "width" in values:
            fields |= {"width": row.number("width"), "height": row.number("height")}
        else:
            fields |= dict(zip(("width", "height"), _size(row, image.read), strict=True))
        return Record(str(name), row.text("sent" if "sent" in row.values else "task_query"), (image,), fields=fields)

    rows = json_lines(path) if path.suffix == ".jsonl" else iter(json_rows(path))
    return collect(rows, make)


def science_qa(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a file {"image", "hint", "question", "choices", "answer"}.

    With the original problems.json (role "problems") the fields `subject`, `topic`, `grade` come from there: the
    number of a problem is the folder of its image.
    """
    images, count = images_of(files), itertools.count()
    problems = json_file(files["problems"]) if "problems" in files else {}

    def make(row: Row) -> Record:
        number = next(count)
        reference = row.text("image")
        image, fields = images.find(row, reference), {}
        if problems:
            problem = problems.get(Path(reference).parent.name)
            if not isinstance(problem, dict):
                raise row.error(
                    f"image {reference!r}: its folder is no problem of {files['problems']}; use both of one"
                )
            fields = {key: problem.get(key, "") for key in ("subject", "topic", "grade")}
        return with_options(row, str(number), row.text("hint", ""), (image,), fields)

    return collect(json_lines(files["records"]), make)


def mmbench(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of a converted file {"index", "image", "hint", "question", "choices", "answer"}.

    Rotation k of question i has the index i + k * 1,000,000. All values of a line but the image are fields.
    """
    images = images_of(files)

    def make(row: Row) -> Record:
        index = row.id("index")
        fields = {key: value for key, value in row.values.items() if key != "image"}
        return with_options(row, str(index), row.text("hint", ""), (images.find(row, row.text("image")),), fields)

    return collect(json_lines(files["records"]), make)


def seed_bench(files: Mapping[str, Path]) -> list[Record]:
    """Return the questions of converted files {"question_id", "prompt", "answer"}, image and video (both roles may be).

    An image question has one image; a video question several frames, or an id that starts with "v". The number of its
    dimension, `question_type_id`, comes from the original file (role "questions"), if that is there.
    """
    rows = json_rows(files["questions"], "questions") if "questions" in files else []
    originals = {row.id("question_id"): row.number("question_type_id") for row in rows}
    records: list[Record] = []
    for role in ("records", "video_records"):
        if role in files:
            make = functools.partial(_seed_question, images=images_of(files, role), originals=originals)
            records += collect(json_lines(files[role]), make)
    twice = len(records) - len({record.id for record in records})
    if twice:
        raise ValueError(f"{files['video_records']}: has {twice} ids of {files['records']}; use each id once")
    return records


def _seed_question(row: Row, *, images: Images, originals: Mapping[int | str, float]) -> Record:
    """Return the record of a SEED-Bench prompt; raise ValueError unless it has the published form."""
    name, prompt = row.id("question_id"), row.text("prompt")
    match = SEED_PROMPT.fullmatch(prompt)
    options = LETTER_START.split(match[3])[1:] if match else []
    if match is None or "".join(options[::2]) != LETTERS[:4]:
        raise row.error(f"prompt: {prompt!r:.80}; use <img>..</img>, Question:, Options: A. to D., Answer:")
    frames = tuple(images.find(row, reference) for reference in SEED_IMAGE.findall(prompt[: match.start(2)]))
    is_video = len(frames) > 1 or str(name).startswith("v")
    fields: dict[str, Any] = {"question_id": name, "data_type": "video" if is_video else "image"}
    if originals and name not in originals:
        raise row.error(f"question_id {name!r} is not in the original SEED-Bench.json; use files that belong together")
    if originals:
        fields["question_type_id"] = originals[name]
    return of_letter(row, str(name), match[2], tuple(options[1::2]), frames, fields)


def of_letter(row: Row, name: str, question: str, options: tuple[str, ...], images: tuple, fields: dict) -> Record:
    """Return a record whose `answer` is a letter, or missing; raise ValueError for a letter without an option."""
    letter = row.text("answer", "")
    if letter and letter not in LETTERS[: len(options)]:
        raise row.error(f"answer: {letter!r}; use one of the letters of its {len(options)} options")
    return Record(name, question, images, (letter,) if letter else (), options, fields=fields)


def with_options(row: Row, name: str, hint: str, images: tuple, fields: dict) -> Record:
    """Return a record of `question`, `choices` and `answer`, an index from 0 that may be missing."""
    options = row.texts("choices")
    if not options or isinstance(row.values["choices"], str):
        raise row.error(f"choices: {row.values.get('choices')!r:.80}; use a list of strings")
    index = row.values.get("answer")
    if index is not None and (type(index) is not int or not 0 <= index < len(options)):
        raise row.error(f"answer: {index!r}; use the number of one of {len(options)} choices, from 0")
    answers = () if index is None else (LETTERS[index],)
    return Record(name, row.text("question"), images, answers, options, hint, fields=fields)


def _size(row: Row, read: Any) -> tuple[int, int]:
    """Return (width, height) from an image's header; raise ValueError if it has none."""
    try:
        with Image.open(io.BytesIO(read())) as image:
            return image.size
    except OSError as error:
        raise row.error(f"image: cannot be read for its size ({error}); write width and height") from error
