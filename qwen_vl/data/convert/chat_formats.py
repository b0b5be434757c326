"""Formats with turns of text and images (LLaVA, ShareGPT, OpenAI, ms-swift, Qwen-VL 2, 3), to ours and back.

One reader reads all of them: turns under `conversations` or `messages`; images under `image` or `images` with
<image> in the text, or as parts of the content. The formats differ in how we write them and in their boxes.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from qwen_vl.data.boxes import box_text
from qwen_vl.data.validation import GRID, FieldError, kind_of, shown
from qwen_vl.files import data_uri

from .swift_objects import Objects, from_ours_to_swift

FORMATS = ("llava", "sharegpt", "openai", "swift", "qwen2vl", "qwen3vl")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
ROLES |= {"model": "assistant", "bot": "assistant", "developer": "system"}
ROLES |= {role: role for role in ("user", "assistant", "system")}
KNOWN_KEYS = {"id", "image", "images", "system", "weight", "conversations", "messages", "objects"}

PLACEHOLDER = re.compile(r"<image>|<\|vision_start\|><\|image_pad\|><\|vision_end\|>")
IMAGE = re.compile(r"(?:Picture [0-9]+: ?)?<img>(.*?)</img>", re.DOTALL)

# What a text of ours must not contain: the other format would read it as markup, and in ours it is plain text.
MEANT: dict[str, tuple[str, ...]] = {form: ("<image>",) for form in ("llava", "sharegpt")}
MEANT["swift"] = ("<image>", "<ref-object>", "<bbox>")
MEANT["qwen2vl"] = ("<image>", "<|vision_start|>", "<|image_pad|>")
MEANT["qwen2vl"] += ("<|object_ref_start|>", "<|box_start|>", "<|quad_start|>")
MEANT["qwen3vl"] = ("<image>", "<|vision_start|>", "<|image_pad|>", '"bbox_2d"')
QWEN2_TAGS = {"object_ref": "ref", "box": "box", "quad": "quad"}
QWEN2_SPAN = re.compile(r"<\|(object_ref|box|quad)_start\|>(.*?)<\|\1_end\|>", re.DOTALL)
NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
JSON_START = re.compile(r'(```(?:json)?\s*)(?=[\[{])|(?=\[\s*\{\s*")|(?=\{\s*"bbox_2d")')
JSON_END = re.compile(r"\s*```")
BOX = r"<box>\([0-9]+,[0-9]+\),\([0-9]+,[0-9]+\)</box>"
BOXES = re.compile(rf"(?:<ref>[^<]*</ref>)?(?:{BOX})+(?:[,，、;；\s]*(?:<ref>[^<]*</ref>)?(?:{BOX})+)*")

Turn = Mapping[str, Any]  # of ours: {"from", "value"}, perhaps "loss"
SizeOf = Callable[[str], tuple[int, int]]  # (image reference) -> (width, height)


# ---- to ours --------------------------------------------------------------------------------------------------------


def to_ours(record: object, form: str, notes: Counter[str], size_of: SizeOf) -> dict[str, Any]:
    """Return our record for one in a chat format. Raise FieldError if it cannot be converted.

    notes: counts what is left out. size_of(reference): (width, height) of an image, called if boxes are in pixels.
    """
    if not isinstance(record, dict):
        raise FieldError("", f"a {kind_of(record)}; use an object with turns")
    key = next((key for key in ("conversations", "messages") if key in record), None)
    if key is None or not isinstance(record[key], list) or not record[key]:
        raise FieldError(key or "", "no turns; give a list of them under 'conversations' or 'messages'")
    for name in ("video", "videos", "audio", "audios", "tools"):
        if record.get(name):
            raise FieldError(name, "only text and images can be trained on; leave the record out")
    notes.update(f"key {name!r} of a record is left out" for name in record.keys() - KNOWN_KEYS)
    reader = _Reader(record, form, size_of)
    ours = {name: record[name] for name in ("id", "weight") if record.get(name) is not None}
    if record.get("system") is not None:
        ours["system"] = reader.content("system", record["system"])
    turns = [reader.turn(f"{key}[{index}]", turn) for index, turn in enumerate(record[key])]
    reader.finish()
    if turns[0]["from"] == "system":
        ours["system"] = turns.pop(0)["value"]
    if any(turn["from"] == "system" for turn in turns):
        raise FieldError(key, "a system turn after the first turn; put it first, or join it to a question")
    return {**ours, "conversations": turns}


class _Reader:
    """A reader of the turns of one record, which replaces each image placeholder with its reference."""

    def __init__(self, record: Mapping[str, Any], form: str, size_of: SizeOf) -> None:
        self.form, self.num_images, self.num_taken = form, 0, 0
        self.key = "images" if "images" in record else "image"
        found = record.get(self.key)
        found = [] if found is None else found if isinstance(found, list) else [found]
        self.references = [_reference(f"{self.key}[{index}]", value) for index, value in enumerate(found)]
        self.objects = Objects(record.get("objects"), self.references, size_of)

    def turn(self, where: str, turn: object) -> dict[str, Any]:
        """Return our turn, whose role may be "system". Raise FieldError for another role or a wrong type."""
        if not isinstance(turn, dict):
            raise FieldError(where, f"a {kind_of(turn)}; use an object with a role and a text")
        role_key = "from" if "from" in turn else "role"
        text_key = next((key for key in ("value", "content", "text") if key in turn), "content")
        role, content = turn.get(role_key), turn.get(text_key)
        if not isinstance(role, str) or role not in ROLES or turn.get("tool_calls"):
            message = f"{shown(role)}; only system, user and assistant turns without tools can be trained on"
            raise FieldError(f"{where}.{role_key}", message)
        ours: dict[str, Any] = {"from": ROLES[role], "value": self.content(f"{where}.{text_key}", content)}
        if turn.get("weight") == 0 or turn.get("loss") is False:
            ours["loss"] = False
        return ours

    def finish(self) -> None:
        """Raise FieldError if no text refers to some image or box."""
        if self.num_taken < len(self.references):
            message = f"{len(self.references)} images, {self.num_taken} <image> in the text; write one for each"
            raise FieldError(self.key, message)
        self.objects.finish()

    def content(self, where: str, content: object) -> str:
        """Return our text of a content, which is a string or a list of parts."""
        if isinstance(content, str):
            return self._placed(where, content)
        if not isinstance(content, list):
            raise FieldError(where, f"a {kind_of(content)}; use a string or a list of parts")
        parts = [self._part(f"{where}[{index}]", part) for index, part in enumerate(content)]
        parts = [(kind, text) for kind, text in parts if text]
        value = ""
        for index, (kind, text) in enumerate(parts):
            if kind == "image":
                before = "\n" if index and parts[index - 1][0] == "text" else ""
                text = before + text + "\n" * (index + 1 < len(parts))
            value += text
        return value

    def _part(self, where: str, part: Any) -> tuple[str, str]:
        """Return ("text" or "image", our text) of a part of a content."""
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            return "text", self._placed(f"{where}.text", part["text"])
        if kind not in ("image_url", "input_image", "image"):
            raise FieldError(f"{where}.type", f"{shown(kind)}; use 'text' or 'image_url'")
        key = next((key for key in ("image_url", "image", "url", "path") if key in part), None)
        if key is None:
            return "image", self._next(where)
        value = part[key].get("url") if isinstance(part[key], dict) else part[key]
        return "image", self._image(_reference(f"{where}.{key}", value))

    def _placed(self, where: str, text: str) -> str:
        """Return the text with our boxes, and with images for <image>. An image that begins a line also ends it."""
        text = self.objects.placed(where, _text_to_ours(where, text, self.form))

        def image(match: re.Match[str]) -> str:
            begins = match.start() == 0 or text[match.start() - 1] == "\n"
            return self._next(where) + "\n" * (begins and text[match.end() : match.end() + 1] not in ("", "\n"))

        return PLACEHOLDER.sub(image, text)

    def _next(self, where: str) -> str:
        """Return our text of the next image of the record. Raise FieldError if there is none left."""
        self.num_taken += 1
        if self.num_taken > len(self.references):
            message = f"more <image> than the {len(self.references)} images under 'image' or 'images'; write one each"
            raise FieldError(where, message)
        return self._image(self.references[self.num_taken - 1])

    def _image(self, reference: str) -> str:
        self.num_images += 1
        return f"Picture {self.num_images}: <img>{reference}</img>"


def _reference(where: str, value: object) -> str:
    """Return an image reference as ours: a file:// address as a path, bytes as a data: URI."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # an Image of `datasets`
        return data_uri(value["bytes"], f"image/{_image_kind(value['bytes'])}")
    if isinstance(value, dict):
        value = value.get("path") or value.get("url")
    if not isinstance(value, str) or not value:
        raise FieldError(where, f"{shown(value)}; use a path, an http(s) address or a data: URI")
    if value[:7].lower() == "file://":
        return url2pathname(unquote(urlsplit(value).path)) if "%" in value else value[7:]
    return value


def _image_kind(content: bytes) -> str:
    """Return the name of an image's format, from its first bytes."""
    kinds = {b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    return next((kind for magic, kind in kinds.items() if content.startswith(magic)), "png")


def _text_to_ours(where: str, text: str, form: str) -> str:
    if form == "qwen2vl":
        return QWEN2_SPAN.sub(lambda match: _qwen2_span(where, match), text)
    return _from_qwen3(where, text) if form == "qwen3vl" else text


def _qwen2_span(where: str, match: re.Match[str]) -> str:
    """Return our tag for one of Qwen2-VL's."""
    kind, content = match.groups()
    tag = QWEN2_TAGS[kind]
    if tag == "ref":
        return f"<ref>{content}</ref>"
    values = _steps(where, NUMBER.findall(content), 4 if tag == "box" else 8)
    points = ",".join(f"({x},{y})" for x, y in zip(values[::2], values[1::2], strict=True))
    return f"<{tag}>{points}</{tag}>"


def _steps(where: str, values: Sequence[Any], count: int) -> list[int]:
    """Return coordinates from 0 to 1000, as Qwen2-VL and Qwen3-VL write them, on our grid.

    Raise FieldError unless they are `count` numbers in that range.
    """
    try:
        steps = [int(float(value)) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise FieldError(where, f"box {shown(values)}; use {count} numbers") from None
    if len(steps) != count:
        raise FieldError(where, f"box {shown(values)} has {len(steps)} numbers; use {count}")
    if not all(0 <= step <= GRID for step in steps):
        message = "thousandths of the image go from 0 to 1000; boxes in pixels (Qwen2.5-VL) must be scaled first"
        raise FieldError(where, f"box {shown(steps)}; {message}")
    return [min(GRID - 1, step) for step in steps]


def _from_qwen3(where: str, text: str) -> str:
    """Return the text with <ref> and <box> instead of JSON with "bbox_2d"."""
    parts: list[str] = []
    decoder, position = json.JSONDecoder(), 0
    while match := JSON_START.search(text, position):
        try:
            content, end = decoder.raw_decode(text, match.end())
        except ValueError:
            content, end = None, match.end() + 1
        entries = content if isinstance(content, list) else [content]
        if not all(isinstance(entry, dict) and "bbox_2d" in entry for entry in entries) or not entries:
            parts.append(text[position:end])
            position = end
            continue
        if match[1] and (fence := JSON_END.match(text, end)):
            end = fence.end()
        parts += [text[position : match.start()], _qwen3_boxes(where, entries)]
        position = end
    parts.append(text[position:])
    ours = "".join(parts)
    for word in ("bbox_2d", "point_2d"):
        if f'"{word}"' in ours:
            cure = "write a list of JSON objects with it" if word == "bbox_2d" else "there is no point in our format"
            raise FieldError(where, f'"{word}" that cannot be read; {cure}')
    return ours


def _qwen3_boxes(where: str, entries: Sequence[dict[str, Any]]) -> str:
    text, last = "", None
    for entry in entries:
        label = entry.get("label")
        values = entry["bbox_2d"] if isinstance(entry["bbox_2d"], list) else [entry["bbox_2d"]]
        extra = entry.keys() - {"bbox_2d", "label"}
        if extra or not isinstance(label, str | None):
            raise FieldError(where, f"box with {shown(sorted(extra) or label)}; only bbox_2d and a label can be kept")
        if label is not None and label != last:
            text += f"<ref>{label}</ref>"
        last = label
        text += box_text(_steps(where, values, 4))
    return text


# ---- and back -------------------------------------------------------------------------------------------------------


def from_ours(record: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return the record of a chat format for one of ours. Raise FieldError if that format cannot hold it."""
    kept = {name: record[name] for name in ("id", "weight") if name in record}
    turns = [{"from": "system", "value": record["system"]}] if "system" in record else []
    turns += record["conversations"]
    for index, turn in enumerate(turns):
        taken = next((mark for mark in MEANT.get(form, ()) if mark in turn["value"]), None)
        if taken:
            where = "system" if turn["from"] == "system" else f"conversations[{index - ('system' in record)}].value"
            raise FieldError(where, f"holds {taken} as text, which that format reads as an image or box; remove it")
    if form in ("llava", "sharegpt"):
        return kept | _with_placeholders(turns, form)
    if form == "swift":
        return kept | from_ours_to_swift(turns, IMAGE)
    return kept | {"messages": [_message(f"conversations[{i}].value", turn, form) for i, turn in enumerate(turns)]}


def _with_placeholders(turns: Sequence[Turn], form: str) -> dict[str, Any]:
    """Return {"conversations"} of LLaVA or ShareGPT, with the images and the system message under their own keys."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    kept: dict[str, Any] = {}
    images, converted = [], []
    for turn in turns:
        images += [match[1] for match in IMAGE.finditer(turn["value"])]
        text = IMAGE.sub("<image>", turn["value"])
        if turn["from"] == "system":
            kept["system"] = text
        else:
            converted.append({**turn, "from": names[turn["from"]], "value": text})
    if images and form == "llava":
        kept["image"] = images[0] if len(images) == 1 else images
    elif images:
        kept["images"] = images
    return {**kept, "conversations": converted}


def _message(where: str, turn: Turn, form: str) -> dict[str, Any]:
    """Return a turn as {"role", "content"}; the content is a string if the turn has no images."""
    parts: list[dict[str, Any]] = []
    position, text = 0, turn["value"]
    for match in IMAGE.finditer(text):
        before = text[position : match.start()].removesuffix("\n")
        if before:
            parts.append({"type": "text", "text": _text_from_ours(where, before, form)})
        parts.append(
            {"type": "image_url", "image_url": {"url": match[1]}}
            if form == "openai"
            else {"type": "image", "image": match[1]}
        )
        position = match.end() + (text[match.end() : match.end() + 1] == "\n")
    rest = _text_from_ours(where, text[position:], form)
    content = [*parts, {"type": "text", "text": rest}] if parts and rest else parts or rest
    message = {"role": turn["from"], "content": content}
    return message | ({} if turn.get("loss", True) else {"weight": 0})


def _text_from_ours(where: str, text: str, form: str) -> str:
    if form == "qwen2vl":
        for theirs, tag in QWEN2_TAGS.items():
            text = text.replace(f"<{tag}>", f"<|{theirs}_start|>").replace(f"</{tag}>", f"<|{theirs}_end|>")
        return text
    if form == "qwen3vl":
        if "<quad>" in text:
            raise FieldError(where, "holds a <quad>, which Qwen3-VL's boxes cannot say; use a <box>")
        return re.sub("</?ref>", "", BOXES.sub(_qwen3_json, text))
    return text


def _qwen3_json(match: re.Match[str]) -> str:
    """Return consecutive boxes as one block of JSON."""
    lines, label = [], None
    for phrase, numbers in re.findall(r"<ref>([^<]*)</ref>|<box>([^<]*)</box>", match.group()):
        if not numbers:
            label = phrase
            continue
        box = [int(number) for number in NUMBER.findall(numbers)]
        entry = {"bbox_2d": box} | ({} if label is None else {"label": label})
        lines.append("\t" + json.dumps(entry, ensure_ascii=False))
    return "```json\n[\n" + ",\n".join(lines) + "\n]\n```"
