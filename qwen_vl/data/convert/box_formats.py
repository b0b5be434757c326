"""Formats with boxes in pixels (COCO detection, RefCOCO-style), to ours and back. `boxes` converts the coordinates."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from PIL import Image

from qwen_vl.data import image_files
from qwen_vl.data.boxes import box_text, numbers, segments, to_grid, to_pixels
from qwen_vl.data.conversations import entries
from qwen_vl.data.sources.json_files import is_named_lines, read_json
from qwen_vl.data.sources.locating import data_files
from qwen_vl.data.sources.opening import form_of, open_bytes
from qwen_vl.data.validation import DataError, FieldError, Problem, kind_of, shown
from qwen_vl.model.download_qwen import ImageError

PROMPTS = {"coco": "Draw a box around every {phrase}.", "refcoco": "Draw a box around {phrase}."}
NAME_KEYS = ("file_name", "image", "img_name", "image_path")
SENTENCE_KEYS = ("sentences", "sentence", "expressions", "expression", "caption")

Box = tuple[int, ...]  # on the grid
Entries = dict[int | str, dict[str, Any]]  # id: entry of a list of COCO's object
Placed = tuple[str, dict[str, Any]]  # (place, our record)
Errors = list[tuple[str, FieldError]]  # (place, error)


class Sizes:
    """The sizes of images, (width, height) in pixels. Only the header of a local file is read; sizes are cached."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders, self.of = folders, cache(self._of)

    def _of(self, reference: str) -> tuple[int, int]:
        try:
            path = image_files.find(reference, self.folders) if image_files.is_local(reference) else None
            if path is None:
                return image_files.read(reference, self.folders).size  # or raise the ImageError of this reference
            with Image.open(path) as image:
                return image.size
        except (ImageError, OSError, Image.DecompressionBombError) as error:
            raise FieldError("", f"{error}; the size of the image is needed") from error


# ---- to ours --------------------------------------------------------------------------------------------------------


def from_coco(
    path: str | os.PathLike, sizes: Sizes, notes: Counter[str], prompt: str | None
) -> Iterator[tuple[str, dict[str, Any] | FieldError]]:
    """Yield (place, our record or FieldError): one conversation for each image and category in it.

    Raise DataError if the file as a whole is not COCO's object.
    """
    content = _json_object(path, ("images", "annotations", "categories"))
    names = {key: category.get("name") for key, category in _by_id(path, content, "categories").items()}
    images = _by_id(path, content, "images")
    found: dict[int | str, dict[str, list[tuple[str, Box]]]] = {}  # image id: {category: [(place, box), ..]}
    for index, annotation in enumerate(content["annotations"]):
        place = f".annotations[{index}]"
        try:
            image = _known(annotation, "image_id", images)
            category = _known(annotation, "category_id", names)
            if not isinstance(category, str):
                raise FieldError("category_id", f"the category is called {shown(category)}; give it a name")
            if annotation.get("iscrowd"):
                notes["a region of a crowd (iscrowd) is left out"] += 1
                continue
            _name(image)  # raises if it has none
            box = _to_grid(annotation.get("bbox"), "xywh", image, sizes)
        except FieldError as error:
            error.id = annotation.get("id")
            yield place, error
            continue
        found.setdefault(annotation["image_id"], {}).setdefault(category, []).append((place, box))
    for image_id, image in images.items():
        if image_id not in found:
            notes["an image without annotations is left out"] += 1
        for category, boxes in found.get(image_id, {}).items():
            name = f"{image_id}-{category}"
            yield boxes[0][0], _conversation(name, _name(image), category, [box for _, box in boxes], "coco", prompt)


def from_refcoco(
    path: str | os.PathLike, sizes: Sizes, prompt: str | None, box_format: str
) -> Iterator[tuple[str, dict[str, Any] | FieldError]]:
    """Yield (place, our record or FieldError): one conversation for each sentence.

    The file holds records with an image, a box and sentences, or one object with `refs` and COCO's annotations.
    Raise DataError if the file as a whole cannot be used.
    """
    for number, (place, record) in enumerate(_refs(path)):
        if isinstance(record, FieldError):
            yield place, record
            continue
        try:
            if isinstance(record, Problem):
                raise FieldError(record.field, record.message)
            if not isinstance(record, dict):
                raise FieldError("", f"a {kind_of(record)}; use an object with an image, a bbox and sentences")
            sentences, image = _sentences(record), _name(record)
            box = _to_grid(record.get("bbox"), box_format, record, sizes)
        except FieldError as error:
            error.id = record.get("ref_id", record.get("id")) if isinstance(record, dict) else None
            yield place, error
            continue
        name = record.get("ref_id", record.get("id", number))
        for index, sentence in enumerate(sentences):
            own = f"{name}-{index}" if len(sentences) > 1 else str(name)
            yield place, _conversation(own, image, sentence, [box], "refcoco", prompt)


def _conversation(
    name: str, image: str, phrase: str, boxes: Sequence[Box], form: str, prompt: str | None
) -> dict[str, Any]:
    question = (prompt or PROMPTS[form]).replace("{phrase}", phrase)
    answer = f"<ref>{phrase}</ref>" + "".join(box_text(box) for box in boxes)
    turns = [("user", f"Picture 1: <img>{image}</img>\n{question}"), ("assistant", answer)]
    return {"id": name, "conversations": [{"from": role, "value": text} for role, text in turns]}


def _json_object(path: str | os.PathLike, keys: Sequence[str]) -> dict[str, Any]:
    """Return the JSON object of a file. Raise DataError unless it has a list of objects under each of `keys`."""
    if form_of(path) != "text":
        raise DataError(f"{path}: a table; COCO's annotations are one JSON object")
    content: Any = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{path}: no list under {', '.join(map(repr, missing))}; give an object with them")
    wrong = next(
        (f"{key}[{i}]" for key in keys for i, entry in enumerate(content[key]) if not isinstance(entry, dict)), 0
    )
    if wrong:
        raise DataError(f"{path}.{wrong}: no object; correct it")
    return content


def _by_id(path: str | os.PathLike, content: Mapping[str, Any], key: str) -> Entries:
    """Return {id: entry} of a list of COCO's object. Raise DataError if an id is neither an integer nor a string."""
    for index, entry in enumerate(content[key]):
        if isinstance(entry.get("id"), bool) or not isinstance(entry.get("id"), str | int):
            raise DataError(f"{path}.{key}[{index}].id: {shown(entry.get('id'))}; use a whole number")
    return {entry["id"]: entry for entry in content[key]}


def _known(record: Mapping[str, Any], key: str, table: Mapping[Any, Any]) -> Any:
    """Return the table's entry for the id that the record has under `key`. Raise FieldError if there is none."""
    try:
        found = table.get(record.get(key))
    except TypeError:  # a list cannot be looked up
        found = None
    if found is None:
        raise FieldError(key, f"{shown(record.get(key))} is unknown; add its entry, or leave the record out")
    return found


def _name(record: Mapping[str, Any]) -> str:
    """Return the file name of a record's image. Raise FieldError if it has none."""
    key = next((key for key in NAME_KEYS if key in record), NAME_KEYS[0])
    if not isinstance(record.get(key), str) or not record[key]:
        raise FieldError(key, f"{shown(record.get(key))}; use the path of the image")
    return record[key]


def _to_grid(values: object, box_format: str, record: Mapping[str, Any], sizes: Sizes) -> Box:
    """Return a box in pixels as a box on the grid.

    values: the record's bbox. The image's size is taken from the record, or else read from the image file.
    Raise FieldError if the box has no area or exceeds the image, or if the size is wrong or cannot be read.
    """
    if not isinstance(values, list) or len(values) != 4 or not all(_is_number(value) for value in values):
        raise FieldError("bbox", f"{shown(values)}; use four numbers")
    x1, y1, third, fourth = values
    x2, y2 = (x1 + third, y1 + fourth) if box_format == "xywh" else (third, fourth)
    if x2 <= x1 or y2 <= y1:
        raise FieldError("bbox", f"{shown(values)} ({box_format}) has no area; correct it, or leave the record out")
    size: tuple[Any, Any] = (record.get("width"), record.get("height"))
    if size == (None, None):
        size = sizes.of(_name(record))
    if not all(_is_number(length) and length > 0 for length in size):
        raise FieldError("width", f"{shown(size)}; use the width and height of the image, or leave both out")
    try:
        return to_grid((x1, y1, x2, y2), *size)
    except ValueError as error:
        raise FieldError("bbox", str(error)) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _refs(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Yield (place, record or Problem or FieldError).

    If the file is one object with `refs`, each ref is joined with its annotation and image.
    """
    if not _is_one_object(path):
        yield from entries(path, is_ours=False)
        return
    content = _json_object(path, ("refs", "images", "annotations"))
    images, annotations = (_by_id(path, content, key) for key in ("images", "annotations"))
    record: dict[str, Any] | FieldError
    for index, ref in enumerate(content["refs"]):
        try:
            record = _joined(ref, images, annotations)
        except FieldError as error:
            error.id = ref.get("ref_id")
            record = error
        yield f".refs[{index}]", record


def _joined(ref: Mapping[str, Any], images: Entries, annotations: Entries) -> dict[str, Any]:
    annotation = _known(ref, "ann_id", annotations)
    image = _known(annotation, "image_id", images)
    own = {key: ref[key] for key in ("ref_id", *SENTENCE_KEYS) if key in ref}
    # The image's file name, not that of the ref: RefCOCO's own carries the annotation's number.
    return {key: image[key] for key in ("file_name", "width", "height") if key in image} | {
        "bbox": annotation.get("bbox"),
        **own,
    }


def _is_one_object(path: str | os.PathLike) -> bool:
    """Return whether a path is a JSON file that begins as an object, and is not called JSON Lines."""
    if len(data_files(path)) > 1 or os.path.isdir(path) or is_named_lines(path) or form_of(path) != "text":
        return False
    with open_bytes(path) as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"


def _sentences(record: Mapping[str, Any]) -> list[str]:
    """Return the phrases of a RefCOCO-style record without duplicates. Raise FieldError if there are none."""
    key = next((key for key in SENTENCE_KEYS if key in record), SENTENCE_KEYS[0])
    values = record.get(key)
    values = values if isinstance(values, list) else [values]
    texts: list[Any] = [value.get("sent", value.get("raw")) if isinstance(value, dict) else value for value in values]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise FieldError(key, f"{shown(record.get(key))}; use a list of sentences")
    return list(dict.fromkeys(text.strip() for text in texts))


# ---- and back -------------------------------------------------------------------------------------------------------


def found_boxes(record: Mapping[str, Any]) -> list[tuple[str, str, list[Box]]]:
    """Return [(image reference, phrase, [box, ..]), ..] of the answers of one of our records.

    Raise FieldError if there is a <quad>, or a <box> without a phrase or an image before it.
    """
    turns = record["conversations"]
    parsed = segments(turns)
    references = [piece.text for pieces in parsed for piece in pieces if piece.kind == "img"]
    found: list[tuple[str, str, list[Box]]] = []
    for index, (turn, pieces) in enumerate(zip(turns, parsed, strict=True)):
        if turn["from"] != "assistant":
            continue
        phrase, previous = None, None
        for piece in pieces:
            where = f"conversations[{index}].value"
            if piece.kind == "quad":
                raise FieldError(where, "holds a <quad>; only a <box> can be written as a box in pixels")
            if piece.kind == "ref":
                phrase = piece.text.strip()
            if piece.kind == "box":
                if not phrase or piece.image is None:
                    missing = "phrase (<ref>)" if piece.image is not None else "image"
                    raise FieldError(where, f"a <box> without a {missing} before it; add it, or leave the record out")
                if previous == "ref":
                    found.append((references[piece.image], phrase, []))
                found[-1][2].append(numbers(piece.text))
            previous = piece.kind
    return found


def to_coco(records: Iterable[Placed], sizes: Sizes, notes: Counter[str]) -> tuple[dict[str, Any], Errors]:
    """Return (COCO's object, [(place, FieldError), ..]). Equal boxes of an image and category are written once."""
    images: dict[str, dict[str, Any]] = {}  # by reference
    categories: dict[str, dict[str, Any]] = {}  # by phrase
    annotations: dict[tuple[int, int, Box], list[float]] = {}  # (image id, category id, box on the grid): bbox
    errors: Errors = []
    for place, record in records:
        try:
            found = [
                (reference, *_pixels(reference, sizes), phrase, boxes)
                for reference, phrase, boxes in found_boxes(record)
            ]
        except FieldError as error:
            error.id = record.get("id")
            errors.append((place, error))
            continue
        if not found:
            notes["a conversation without boxes in its answers is left out"] += 1
        for reference, width, height, phrase, boxes in found:
            image = images.setdefault(
                reference, {"id": len(images) + 1, "file_name": reference, "width": width, "height": height}
            )
            category = categories.setdefault(phrase, {"id": len(categories) + 1, "name": phrase})
            for box in boxes:
                annotations.setdefault((image["id"], category["id"], box), _xywh(box, width, height))
    rows = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            "area": round(bbox[2] * bbox[3], 2),
            "iscrowd": 0,
        }
        for number, ((image, category, _), bbox) in enumerate(annotations.items(), start=1)
    ]
    return {"images": list(images.values()), "annotations": rows, "categories": list(categories.values())}, errors


def to_refcoco(
    records: Iterable[Placed], sizes: Sizes, notes: Counter[str], box_format: str
) -> tuple[list[dict[str, Any]], Errors]:
    """Return ([RefCOCO-style record, ..], [(place, FieldError), ..]): one record for each box, with all its phrases."""
    refs: dict[tuple[str, Box], dict[str, Any]] = {}  # by (reference, box on the grid)
    errors: Errors = []
    for place, record in records:
        try:
            found = [
                (reference, _pixels(reference, sizes), phrase, boxes)
                for reference, phrase, boxes in found_boxes(record)
            ]
        except FieldError as error:
            error.id = record.get("id")
            errors.append((place, error))
            continue
        for reference, (width, height), phrase, boxes in found:
            if len(boxes) > 1:
                notes["a phrase with several boxes is left out"] += 1
                continue
            bbox = _xywh(boxes[0], width, height)
            if box_format == "xyxy":
                bbox = [round(value, 2) for value in to_pixels(boxes[0], width, height)]
            ref = {"ref_id": len(refs) + 1, "file_name": reference, "width": width, "height": height, "bbox": bbox}
            sentences = refs.setdefault((reference, boxes[0]), {**ref, "sentences": []})["sentences"]
            if {"sent": phrase} not in sentences:
                sentences.append({"sent": phrase})
    return list(refs.values()), errors


def _pixels(reference: str, sizes: Sizes) -> tuple[int, int]:
    """Return (width, height) of an image. Raise FieldError if it is a data: URI, which these formats cannot name."""
    if reference[:5].lower() == "data:":
        raise FieldError("conversations", "a data: URI has no file name; save the image as a file first")
    return sizes.of(reference)


def _xywh(box: Box, width: float, height: float) -> list[float]:
    """Return a box on the grid as [x, y, width, height] in pixels, rounded to hundredths."""
    x1, y1, x2, y2 = to_pixels(box, width, height)
    return [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)]
