"""Boxes of an answer, with their phrases, drawn on an image."""

import os
import unicodedata
import warnings
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#c71585", "#9a6324", "#808000", "#000075")
SMALL, ENLARGED = 200, 320  # pixels of the longer side: below the first, an image is enlarged to the second or more
FIRST_CJK = "\u2e80"  # CJK radicals; kana, ideographs and Hangul syllables follow
FONT_DIRS = (
    "~/.fonts",
    "~/.local/share/fonts",
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    os.path.join(os.environ.get("WINDIR", "C:\\Windows"), "Fonts"),
)
# Parts of the file names of fonts, the preferred ones first: those with Chinese characters, then two wide Latin ones.
CJK_FONT_NAMES = (
    *("notosanscjk", "sourcehansans", "pingfang", "hiragino sans gb", "msyh", "wqy-microhei", "wqy-zenhei"),
    *("droidsansfallback", "stheiti", "simhei", "simsun", "notoserifcjk", "uming", "ukai", "arial unicode"),
)
FONT_NAMES = (*CJK_FONT_NAMES, "dejavusans.ttf", "arial.ttf")


@lru_cache(maxsize=1)
def find_font() -> tuple[str, bool] | None:
    """Return (path, whether it has Chinese characters) of the best system font that Pillow reads, None without one."""
    found: list[tuple[int, str]] = []  # rank and path
    for folder in (Path(name).expanduser() for name in FONT_DIRS):
        for path in folder.rglob("*.[tToO][tT][fFcC]") if folder.is_dir() else ():
            rank = next((i for i, name in enumerate(FONT_NAMES) if name in path.name.lower()), None)
            if rank is not None:
                found.append((rank, str(path)))
    for rank, file in sorted(found):
        try:
            ImageFont.truetype(file, 12)
        except OSError:  # a broken file, or a format that this FreeType does not read
            continue
        return file, rank < len(CJK_FONT_NAMES)
    return None


def load_font(size: int) -> Any:
    """Return a font of `size` pixels: the best of the system, or Pillow's own if there is none."""
    found = find_font()
    return ImageFont.truetype(found[0], size) if found else ImageFont.load_default(size)


def warn_of_missing_characters(label: str) -> None:
    """Warn if the label needs Chinese, Japanese or Korean characters and no system font has them."""
    found = find_font()
    if not (found and found[1]) and any(character >= FIRST_CJK for character in label):
        warnings.warn(f"no font for the characters of {label!r:.60}: install one, such as Noto Sans CJK or WenQuanYi")


def draw_boxes(image: Image.Image, boxes: list[dict[str, Any]]) -> Image.Image:
    """Return a copy of the PIL image with boxes drawn on it.

    `boxes` are {'box': (x1, y1, x2, y2), 'ref': phrase} with coordinates in [0, 1000) relative to width and height.
    Corners may come in any order; values outside move to the edge. Each phrase gets the next color and is the label
    of its box. A box without a phrase gets the color of the box before it. Lines and labels grow with the image. An
    image so small that labels would cover it is enlarged by a whole factor.
    """
    image = enlarge_small(image.convert("RGB"))  # a copy, also of an RGB image
    draw = ImageDraw.Draw(image)
    side = min(image.size)
    line = max(2, round(side / 150))
    font = load_font(max(11, round(side / 24)))
    color, phrases, labels = COLORS[0], 0, []
    for box in boxes:
        if "ref" in box:
            color = COLORS[phrases % len(COLORS)]
            phrases += 1
        corners = to_pixels(box["box"], image.size)
        draw.rectangle(corners, outline=color, width=line)
        if box.get("ref"):
            warn_of_missing_characters(box["ref"])
            labels.append((corners, box["ref"], color))
    for corners, label, color in labels:  # after all boxes, so that no line crosses a label
        draw_label(draw, corners, label, color, font, image.size)
    return image


def enlarge_small(image: Image.Image) -> Image.Image:
    """Return the image; if its longer side has fewer than SMALL pixels, with each pixel repeated."""
    longest = max(image.size)
    if longest >= SMALL:
        return image
    factor = ceil(ENLARGED / longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def to_pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a box in thousandths of (width, height) as pixels inside the image: (left, top, right, bottom)."""
    x1, y1, x2, y2 = box
    (left, right), (top, bottom) = sorted((x1, x2)), sorted((y1, y2))
    width, height = size

    def scale(value: float, length: int) -> int:
        return min(int(min(max(value, 0), 1000) / 1000 * length), length - 1)

    return scale(left, width), scale(top, height), scale(right, width), scale(bottom, height)


def draw_label(
    draw: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    label: str,
    color: str,
    font: Any,
    size: tuple[int, int],
) -> None:
    """Draw the label in white on its color, outside the box (`label_place`), cut to the width of the image."""
    margin = max(2, font.size // 5)
    label = "".join(c for c in " ".join(label.split()) if unicodedata.category(c) not in ("Cc", "Cs"))
    label = shorten(draw, label[: size[0]], font, size[0] - 2 * margin)  # few characters are narrower than a pixel
    if not label:
        return
    ascent, descent = font.getmetrics()
    label_width, label_height = ceil(draw.textlength(label, font=font)) + 2 * margin, ascent + descent + margin
    left, top = label_place(corners, (label_width, label_height), size)
    draw.rectangle((left, top, left + label_width, top + label_height), fill=color)
    draw.text((left + margin, top + margin // 2), label, font=font, fill="white")


def label_place(
    corners: tuple[float, float, float, float], label_size: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float]:
    """Return (left, top) of a label: above its box, below it, next to it, or inside if there is no room outside."""
    x1, y1, x2, y2 = corners
    (label_width, label_height), (width, height) = label_size, size
    along_x = max(0, min(x1, width - label_width))
    along_y = max(0, min(y1, height - label_height))
    if y1 >= label_height:
        return along_x, y1 - label_height
    if y2 + label_height < height:
        return along_x, y2
    if x2 + label_width < width:
        return x2, along_y
    if x1 >= label_width:
        return x1 - label_width, along_y
    return along_x, along_y


def shorten(draw: ImageDraw.ImageDraw, label: str, font: Any, width: int) -> str:
    """Return the label, cut to `width` pixels and ended by an ellipsis if it is longer."""
    if draw.textlength(label, font=font) <= width:
        return label
    while label and draw.textlength(label + "..", font=font) > width:
        label = label[:-1]
    return label and label + ".."
