"""The boxes of ms-swift: `<ref-object>` and `<bbox>` in the text, and their values under the key `objects`.

Its documented form: {"ref": ["dog"], "bbox": [[x1, y1, x2, y2]], "bbox_type": "real" | "norm1", "image_id": [0]}.
That of its version 2: [{"caption": "dog", "bbox": [..], "bbox_type": "real" | "norm_1000" | "norm_1", "image": 0}].
Both also occur as JSON text. Our format has thousandths of the image, so pixels ("real", the default) need its size.
"""

import json
import re
from collections.abc import Callable

from qwen_vl.data.boxes import box_text, numbers, segments, to_grid
from qwen_vl.data.validation import GRID, FieldError, shown

PLACE = re.compile(r"<ref-object>|<bbox>")
OURS = re.compile(r"<ref>(.*?)</ref>|<box>(.*?)</box>", re.DOTALL)
SCALES = {"norm1": 1, "norm_1": 1, "norm1000": GRID, "norm_1000": GRID}  # by which coordinates are divided
Box = tuple[int, ...]


class Objects:
    """The phrases and boxes that replace the placeholders of one record, in their order.

    content: the record's `objects`, or None. references: its images. size_of(reference): (width, height) of one.
    Raises FieldError if a value cannot become one of our boxes.
    """

    def __init__(self, content: object, references: list[str], size_of: Callable[[str], tuple[int, int]]) -> None:
        self._references, self._size_of = references, size_of
        self.phrases: list[str] = []
        self.boxes: list[list[Box]] = []  # of each placeholder
        if isinstance(content, str):
            try:
                content = json.loads(content)
            except (ValueError, RecursionError):
                raise FieldError("objects", "a text that is not JSON; use an object with ref and bbox") from None
        if isinstance(content, list):
            self._read_entries(content)
        elif isinstance(content, dict):
            self._read_columns(content)
        elif content is not None:
            raise FieldError("objects", f"{shown(content)}; use an object with ref and bbox")
        self._num_phrases, self._num_boxes = 0, 0

    def placed(self, where: str, text: str) -> str:
        """Return the text with our tags instead of the placeholders."""
        return PLACE.sub(lambda match: self._next(where, match.group()), text) if "<" in text else text

    def finish(self) -> None:
        """Raise FieldError if no text refers to one of the boxes."""
        if self._num_boxes < len(self.boxes):
            found = f"{len(self.boxes)} boxes, {self._num_boxes} <bbox> in the text; write one for each"
            raise FieldError("objects", found)

    def _next(self, where: str, placeholder: str) -> str:
        is_phrase = placeholder == "<ref-object>"
        index = self._num_phrases if is_phrase else self._num_boxes
        name, count = ("ref", len(self.phrases)) if is_phrase else ("bbox", len(self.boxes))
        if index >= count:
            raise FieldError(where, f"more {placeholder} than the {count} under objects.{name}; write one each")
        if is_phrase:
            self._num_phrases += 1
            return f"<ref>{self.phrases[index]}</ref>"
        self._num_boxes += 1
        return "".join(box_text(box) for box in self.boxes[index])

    def _read_columns(self, content: dict) -> None:
        phrases, boxes = content.get("ref") or [], content.get("bbox") or []
        places = content.get("image_id") or []
        if not all(isinstance(values, list) for values in (phrases, boxes, places)):
            raise FieldError("objects", "use lists under ref, bbox and image_id")
        self.phrases = [_phrase(f"objects.ref[{index}]", phrase) for index, phrase in enumerate(phrases)]
        places = places * len(boxes) if len(places) == 1 else places or [0] * len(boxes)
        if len(places) != len(boxes):
            raise FieldError("objects.image_id", f"{len(places)} entries for {len(boxes)} boxes; write one for each")
        kind = content.get("bbox_type")
        self.boxes = [
            self._boxes(f"objects.bbox[{index}]", values, kind, place)
            for index, (values, place) in enumerate(zip(boxes, places, strict=True))
        ]

    def _read_entries(self, content: list) -> None:
        for index, entry in enumerate(content):
            where = f"objects[{index}]"
            if not isinstance(entry, dict):
                raise FieldError(where, f"{shown(entry)}; use an object with caption and bbox")
            self.phrases.append(_phrase(f"{where}.caption", entry.get("caption", entry.get("ref"))))
            kind, place = entry.get("bbox_type"), entry.get("image", entry.get("image_id", 0))
            self.boxes.append(self._boxes(f"{where}.bbox", entry.get("bbox"), kind, place))

    def _boxes(self, where: str, values: object, kind: object, place: object) -> list[Box]:
        """Return the boxes on the grid that one placeholder stands for: one, or several."""
        if isinstance(values, list) and values and all(isinstance(value, list) for value in values):
            return [self._box(where, value, kind, place) for value in values]
        return [self._box(where, values, kind, place)]

    def _box(self, where: str, values: object, kind: object, place: object) -> Box:
        if not isinstance(values, list) or len(values) != 4 or not all(map(_is_number, values)):
            raise FieldError(where, f"{shown(values)}; only boxes of four numbers can be kept, x1, y1, x2, y2")
        scale = SCALES.get(kind) if isinstance(kind, str) else None
        if scale is not None:
            width = height = scale
        elif kind in (None, "real", "none"):
            width, height = self._size(where, place)
        else:
            raise FieldError("objects.bbox_type", f"{shown(kind)}; use 'real' (pixels) or 'norm1'")
        try:
            return to_grid(values, width, height, tolerance=None if scale is None else 0)
        except (ValueError, OverflowError) as error:
            raise FieldError(where, str(error)) from None

    def _size(self, where: str, place: object) -> tuple[int, int]:
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(self._references):
            raise FieldError(where, f"image {shown(place)} of {len(self._references)}; name one of them, from 0 on")
        try:
            return self._size_of(self._references[place])
        except FieldError as error:
            raise FieldError(where, str(error)) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _phrase(where: str, phrase: object) -> str:
    if not isinstance(phrase, str) or "<" in phrase:
        raise FieldError(where, f"{shown(phrase)}; use a text without <")
    return phrase


# ---- and back -------------------------------------------------------------------------------------------------------


def from_ours_to_swift(turns: list[dict], image: re.Pattern) -> dict:
    """Return {"messages", "images", "objects"} of turns of ours. Raise FieldError for a quad or a box in no image.

    Coordinates are the center of their step as a share of the image ("norm1"), so converting back changes nothing.
    """
    images, messages = [], []
    for turn in turns:
        images += [match[1] for match in image.finditer(turn["value"])]
        text = OURS.sub(lambda match: "<bbox>" if match[1] is None else "<ref-object>", turn["value"])
        message = {"role": turn["from"], "content": image.sub("<image>", text)}
        messages.append(message | ({} if turn.get("loss", True) else {"loss": False}))
    pieces = [piece for each in segments(turns) for piece in each]
    if any(piece.kind == "quad" for piece in pieces):
        raise FieldError("conversations", "holds a <quad>, which ms-swift cannot say; use a <box>")
    boxes = [piece for piece in pieces if piece.kind == "box"]
    if any(piece.image is None for piece in boxes):
        raise FieldError("conversations", "a <box> without an image before it; add it, or leave the record out")
    phrases = [piece.text for piece in pieces if piece.kind == "ref"]
    objects = {"ref": phrases, "bbox": [[(step + 0.5) / GRID for step in numbers(box.text)] for box in boxes]}
    objects |= {"bbox_type": "norm1", "image_id": [box.image for box in boxes]}
    kept = {"images": images} if images else {}
    return {"messages": messages, **kept} | ({"objects": objects} if boxes or phrases else {})
