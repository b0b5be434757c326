"""Images, phrases and boxes in text: the list format of prompts, and boxes of an answer drawn on an image."""

import contextlib
import re
import unicodedata
import warnings
from typing import Any

from PIL import Image

from .box_drawing_qwen import draw_boxes
from .download_qwen import ImageError
from .image_loading_qwen import OpenImage, image_opener

IMG_START, IMG_END = "<img>", "</img>"
LIST_FORMAT_TAGS = {"<img>": "image", "<ref>": "ref", "<box>": "box", "<quad>": "quad"}
# A box with no other in it, and the phrase right before it, which has no tag in it.
BOX_WITH_REF = re.compile(
    r"(?:<ref>((?:(?!</?(?:ref|box|quad|img)>).)*)</ref>)?<box>((?:(?!<box>).)*?)</box>", re.DOTALL
)
SHOWN_LENGTH = 60  # characters of a malformed box in a warning


class ListFormat:
    """The methods of a QWenTokenizer that read and write image, phrase and box tags in text."""

    def from_list_format(self, list_format: list[dict[str, Any]]) -> str:
        """Return the text of [{'image': path}, {'text': ..}, {'ref': .., 'box': [[x1, y1, x2, y2], ..]}]."""
        text, images = "", 0
        for element in list_format:
            if "image" in element:
                images += 1
                text += f"Picture {images}: {IMG_START}{element['image']}{IMG_END}\n"
            elif "text" in element:
                text += element["text"]
            elif "box" in element:
                if "ref" in element:
                    text += f"<ref>{element['ref']}</ref>"
                text += "".join(self._box_text(box) for box in element["box"])
            else:
                raise ValueError(f"unsupported element {element!r}; use 'image', 'text', or 'box' and 'ref'")
        return text

    @staticmethod
    def _box_text(box: Any) -> str:
        """Return <box>(x1,y1),(x2,y2)</box> of four numbers, fractions cut off."""
        if not isinstance(box, (list, tuple)) or len(box) != 4:
            raise ValueError(f"box {box!r}; give 'box' a list of boxes, each [x1, y1, x2, y2]")
        x1, y1, x2, y2 = (int(value) for value in box)
        return f"<box>({x1},{y1}),({x2},{y2})</box>"

    def to_list_format(self, text: str) -> list[dict[str, str]]:
        """Return [{'image'|'ref'|'box'|'quad'|'text': ..}, ..] of text, in order; contents are kept as they are.

        The text may come from a model, so a tag that is never closed, and any control marker, is text.
        """
        text = unicodedata.normalize("NFC", text)
        elements, position = [], 0
        for match in re.finditer("|".join(LIST_FORMAT_TAGS), text):
            tag = match.group()
            if match.start() < position:
                continue  # inside the previous element
            end = text.find(f"</{tag[1:]}", match.end())
            if end < 0:
                continue
            if match.start() > position:
                elements.append({"text": text[position : match.start()]})
            elements.append({LIST_FORMAT_TAGS[tag]: text[match.end() : end]})
            position = end + len(tag) + 1
        if position < len(text):
            elements.append({"text": text[position:]})
        return elements

    def _fetch_latest_picture(self, response: str, history: list[tuple[str, str | None]] | None) -> str | None:
        """Return the last image reference of the response, else of the newest question that has one; None without."""
        for text in (response, *(question for question, _ in reversed(history or []))):
            references = re.findall(f"{IMG_START}(.*?){IMG_END}", text, flags=re.DOTALL)
            if references:
                return references[-1]
        return None

    def _fetch_all_box_with_ref(self, text: str) -> list[dict[str, Any]]:
        """Return [{'box': (x1, y1, x2, y2), 'ref': phrase}, ..]; 'ref' only if a phrase is right before the box.

        Boxes that are not closed, or not four whole numbers, are skipped, and one warning counts them.
        """
        text = unicodedata.normalize("NFC", text)
        boxes, malformed = [], {match.start() for match in re.finditer("<box>", text)}
        for match in BOX_WITH_REF.finditer(text):
            phrase, content = match.groups()
            if numbers := _box_numbers(content):
                boxes.append({"box": numbers} | ({} if phrase is None else {"ref": phrase.strip()}))
                malformed.remove(match.start(2) - len("<box>"))
        if malformed:
            first = text[min(malformed) :][:SHOWN_LENGTH]
            warnings.warn(
                f"{len(malformed)} of {len(malformed) + len(boxes)} boxes cannot be drawn, as they are not "
                f"<box>(x1,y1),(x2,y2)</box> with whole numbers; the first begins {first!r}"
            )
        return boxes

    def draw_bbox_on_latest_picture(
        self,
        response: str,
        history: list[tuple[str, str | None]] | None = None,
        open_image: OpenImage | None = None,
    ) -> Image.Image | None:
        """Return the latest image (PIL) with the boxes of the response drawn on it; None without image or box.

        The image is the last one in the questions of `history`; an image that an answer names is never opened. Without
        a history the response is a whole text, question and answer, and its last image that can be opened is taken.
        Malformed boxes are skipped with a warning. A small image is enlarged (`draw_boxes`).
        `open_image` opens it, by default from any path or address. Raise ImageError if it cannot be opened.
        """
        boxes = self._fetch_all_box_with_ref(response)
        if history is None:
            references = re.findall(f"{IMG_START}(.*?){IMG_END}", response, flags=re.DOTALL)
        else:
            references = [self._fetch_latest_picture("", history)]
        if not boxes or not references or references[-1] is None:
            return None
        return draw_boxes(_open_latest(references, image_opener(open_image)), boxes)


def _open_latest(references: list[str], opener: OpenImage) -> Image.Image:
    """Return the last image that can be opened, as a model may invent later ones; raise the error of the first."""
    for reference in reversed(references[1:]):
        with contextlib.suppress(ImageError):
            return opener(reference)
    return opener(references[0])


def _box_numbers(content: str) -> tuple[int, int, int, int] | None:
    """Return (x1, y1, x2, y2) from the text between <box> and </box>, None unless it is four whole numbers."""
    try:
        x1, y1, x2, y2 = (int(number) for number in content.replace("(", "").replace(")", "").split(","))
    except ValueError:
        return None
    return x1, y1, x2, y2
