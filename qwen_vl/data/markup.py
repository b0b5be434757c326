"""Markup of other formats for images and boxes. It is plain text here, so the model would see no image.

The rule, for the run and the check alike:
- A *mark* is what another format writes for an image (`<image>`, `<|image_pad|>`, `<img src=..>`, ..), a box
  (`<|box_start|>`, "bbox_2d", `<bbox>`, ..) or a video. In quotes or in code it is text, and is ignored.
- Each mark is a warning that names the format and the conversion.
- A mark is *placed* if it stands for an image of the conversation and not for itself: at the start or the end of a
  user turn, alone on its line (next to "Picture 1:" at most), or more than once in a turn. A mark that ordinary text
  never contains, such as `<|image_pad|>`, is placed anywhere in a user turn. `<img src=..>` next to other HTML is not
  placed. A key such as `image_path` in a record without images counts as a placed mark.
- A file with placed marks and without a single `<img>` of ours is an error: all its images are lost. HTML, `[IMG]` and
  keys count only if half of the records have them, marks within a sentence only if at least ten records do.
- With one image of ours in the file, marks stay warnings. In answers and system texts they are always warnings.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

CONVERT = "qwen-vl data convert FILE OUT.json --from"


class Mark(NamedTuple):
    """The markup that another format writes for an image, a box or a video."""

    name: str  # for messages; "" to show the matched text
    pattern: re.Pattern
    kind: str  # "image", "box" or "video"
    format: str  # who writes it
    convert: str | None  # the value of --from that reads it
    trait: str  # of TRAITS


# "sure": ordinary text never contains it. "weak": ordinary text often does. "json": it counts even in quotes.
# "inline": it was found within a sentence.
TRAITS = ("", "sure", "weak", "json", "inline")
MIN_INLINE = 10  # fewer records with a mark within a sentence may be an accident


def _mark(pattern: str, kind: str, form: str, convert: str | None = None, trait: str = "", name: str = "") -> Mark:
    return Mark(name, re.compile(pattern), kind, form, convert, trait)


SMALL_LETTERS = "our tag, but not in small letters"
MARKS = (
    _mark(r"(?i:</?image>)", "image", "LLaVA, ShareGPT, ms-swift", "llava"),
    _mark(r"</?(?!img>)(?i:img)>", "image", SMALL_LETTERS),
    _mark(r"<(?i:img)\s[^<>]*\bsrc\s*=[^<>]*>", "image", "HTML", trait="weak", name="<img src=..>"),
    _mark(r"<\|(?:vision_(?:start|end|pad)|image_pad)\|>", "image", "Qwen2-VL to Qwen3-VL", "qwen2vl", "sure"),
    _mark(r"<\|image(?:_[0-9]+)?\|>", "image", "Phi-3-vision, Llama 3.2 and others", trait="sure", name="<|image|>"),
    _mark(r"<image[ _][0-9]+>", "image", "MMMU and others", name="<image 1>"),
    _mark(r"<ImageHere>", "image", "MiniGPT-4, XComposer", trait="sure"),
    _mark(r"<IMG_CONTEXT>", "image", "InternVL", trait="sure"),
    _mark(r"<image_placeholder>", "image", "DeepSeek-VL", trait="sure"),
    _mark(r"<(?:start_of_image|image_soft_token)>", "image", "Gemma 3", trait="sure"),
    _mark(r"<\|(?:begin_of_image|media_begin|image_start|IMAGE_START)\|>", "image", "GLM-4V and others", trait="sure"),
    _mark(r"<im_(?:patch|start|end)>", "image", "LLaVA", trait="sure"),
    _mark(r"\[IMG\]", "image", "Pixtral", trait="weak"),
    _mark(r"<\|(?:object_ref|box|quad)_(?:start|end)\|>", "box", "Qwen2-VL", "qwen2vl", "sure"),
    _mark(r"""["'](?:bbox|point)_2d["']\s*:""", "box", "Qwen2.5-VL, Qwen3-VL", "qwen3vl", "json", '"bbox_2d"'),
    _mark(r"</?bbox>|<ref-object>", "box", "ms-swift", "swift", "sure"),
    _mark(r"<loc_?[0-9]{1,4}>", "box", "PaliGemma, Florence-2", trait="sure", name="<loc0123>"),
    _mark(r"\{<[0-9]{1,4}>(?:<[0-9]{1,4}>){3}\}", "box", "MiniGPT-v2", trait="sure", name="{<1><2><3><4>}"),
    _mark(r"<patch_index_[0-9]+>", "box", "Kosmos-2", trait="sure", name="<patch_index_0123>"),
    _mark(r"<\|/?(?:det|ref|grounding)\|>", "box", "DeepSeek-VL2", trait="sure"),
    _mark(r"\[\[[0-9]{3}(?:,[0-9]{3}){3}[\];]", "box", "CogVLM", trait="sure", name="[[012,345,678,910]]"),
    _mark(r"</?(?!(?:box|ref|quad)>)(?i:box|ref|quad)>", "box", SMALL_LETTERS),
    _mark(r"<video>|<\|video_pad\|>", "video", "LLaVA, ms-swift, Qwen2-VL"),
)
IMAGE_KEYS = ("image", "images", "image_path", "image_paths", "image_file", "image_url", "img", "img_path", "picture")
OTHERS_ROLES = ("human", "gpt")

OURS = "<img>"
TRIGGER = re.compile(
    r"<(?!/?(?:img|ref|box|quad)>)[|/]*[A-Za-z]|\[(?:IMG|\[[0-9])|\{<|_2d"
)  # a quick check: some mark may be there
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "«": "»"}
OTHER_HTML = re.compile(r"</?(?!(?:img|ref|box|quad)\b)[a-z][a-z0-9]*[\s/>]", re.IGNORECASE)
LABEL = re.compile(r"(?:picture|image|图片?|图像) ?[0-9]{0,3} ?[:：]?\s*", re.IGNORECASE)


def found(text: str) -> list[Mark]:
    """Return the marks of other formats in a text, each once."""
    if not TRIGGER.search(text):
        return []
    first = ((mark, next(_matches(mark, text), None)) for mark in MARKS)
    return [mark._replace(name=mark.name or match.group()) for mark, match in first if match]


def _matches(mark: Mark, text: str) -> Iterator[re.Match]:
    """Yield the matches of a mark that stand neither in quotes nor in code."""
    if mark.trait != "json" and "`" in text:
        text = CODE.sub(lambda match: " " * len(match.group()), text)
    for match in mark.pattern.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if mark.trait == "json" or not before or QUOTES.get(before) != after:
            yield match


def advice(mark: Mark) -> str:
    """Return what is wrong with a mark and what to do. The text does not depend on where the mark is."""
    if mark.kind == "video":
        return f"{mark.name} ({mark.format}) is plain text here; only text and images are trained"
    ours = "no image; write <img>PATH</img>" if mark.kind == "image" else "no box; write <box>(x1,y1),(x2,y2)</box>"
    convert = f", or convert the original file: {CONVERT} {mark.convert}" if mark.convert else ""
    return f"{mark.name} ({mark.format}) is plain text here, {ours}{convert}"


# ---- a file ---------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """The images of a record: whether one is written as ours, and the placed marks of other formats."""

    has_ours: bool
    placed: tuple[Mark, ...]


def images_of(record: Any) -> Images:
    """Return the Images of a record, which may hold anything."""
    turns = _turns(record)
    texts = [(turn.get("from"), turn["value"]) for turn in turns if isinstance(turn.get("value"), str)]
    if any(OURS in text for _, text in texts):
        return Images(True, ())
    asked = [text for role, text in texts if role in ("user", "human")]
    marks = [
        mark if _is_placed(mark, text) else mark._replace(trait="inline")
        for text in asked
        for mark in found(text)
        if mark.kind == "image" and not (mark.format == "HTML" and OTHER_HTML.search(text))
    ]
    keys = [key for key in IMAGE_KEYS if turns and record.get(key)]
    marks += [Mark(f"the key {key!r}", CODE, "image", "LLaVA and others", "llava", "weak") for key in keys]
    marks.sort(key=lambda mark: mark.trait != "inline")  # of two with the same name, the placed one stays
    return Images(False, tuple({mark.name: mark for mark in marks}.values()))


def _turns(record: Any) -> list[dict]:
    turns = record.get("conversations", record.get("messages")) if isinstance(record, dict) else None
    return [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _is_placed(mark: Mark, text: str) -> bool:
    """Return whether a mark of a user turn stands for an image of the conversation."""
    matches = list(_matches(mark, text))
    if mark.trait == "sure" or (not mark.trait and len(matches) > 1):
        return True

    def is_bare(part: str) -> bool:
        return not LABEL.sub("", mark.pattern.sub("", part)).strip()

    for match in matches:
        start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        line = text[start : end if end >= 0 else len(text)]
        if is_bare(text[: match.start()]) or is_bare(line) or is_bare(text[match.end() :]):
            return True
    return False


class ImageCount:
    """A count of how the records of a file write their images. `error` tells whether all of them are lost."""

    def __init__(self) -> None:
        self.num_records, self.has_ours = 0, False
        self.num_with: Counter[Mark] = Counter()

    def add(self, images: Images) -> None:
        self.num_records += 1
        self.has_ours |= images.has_ours
        for mark in images.placed:
            self.num_with[mark] += 1

    def error(self) -> str | None:
        """Return the error of a file whose images are all written as in another format, or None."""
        for mark, count in [] if self.has_ours else self.num_with.most_common():
            is_rare = 2 * count < self.num_records or (mark.trait == "inline" and count < MIN_INLINE)
            if mark.trait in ("weak", "inline") and is_rare:
                continue
            convert = f", or convert the original file: {CONVERT} {mark.convert}" if mark.convert else ""
            quote = "" if mark.name.startswith("the key") else "; put it in quotes where it is meant as text"
            return (
                f"all images are lost: none is written as <img>PATH</img>, and {count} of {self.num_records} records "
                f"have {mark.name} ({mark.format}), which is no image here. Write <img>PATH</img> in its place{convert}"
                f"{quote}"
            )
        return None


# ---- a record of another format -------------------------------------------------------------------------------------


def convertible(record: Any) -> str | None:
    """Return the value of `--from` for a record of another format, or None if it is unclear."""
    turns = _turns(record)
    if not turns:
        return None
    if record.get("objects"):
        return "swift"
    text = "\n".join(str(turn.get("value", turn.get("content"))) for turn in turns)
    boxes = next((mark.convert for mark in found(text) if mark.kind == "box" and mark.convert), None)
    has_images = any(record.get(key) for key in ("image", "images"))
    if boxes:
        return boxes
    if "conversations" not in record:
        return "sharegpt" if has_images else "openai"
    if has_images or any(turn.get("from") in OTHERS_ROLES for turn in turns):
        return "sharegpt" if record.get("images") else "llava"
    return "openai" if all("role" in turn for turn in turns) else None
