"""Drawings of `charts`, read back: texts are measured as in a real font, positions are those of the SVG."""

import math
import re
from itertools import combinations
from xml.etree import ElementTree

from qwen_vl.training.monitor import charts

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")
# Widths of the characters " " to "~" in DejaVu Sans at 11 pixels, in 64ths of a pixel: the widest of the common fonts.
PLAIN = """
    224 282 324 590 448 669 549 194 275 275 352 590 224 254 224 237 448 448 448 448 448 448 448 448
    448 448 237 237 590 590 590 374 704 482 483 492 542 445 405 546 529 208 208 462 392 607 527 554
    425 554 489 447 430 515 482 696 482 430 482 275 237 275 590 352 352 431 447 387 447 433 248 447
    446 196 196 408 196 686 446 431 447 447 289 367 276 446 417 576 417 417 370 448 237 448 590
"""
BOLD = """
    245 321 367 590 490 705 614 216 322 322 368 590 267 292 267 257 490 490 490 490 490 490 490 490
    490 490 282 282 590 590 590 408 704 545 537 517 584 481 481 578 589 262 262 546 449 701 589 598
    516 598 542 507 480 572 545 777 543 510 510 322 257 322 590 352 352 475 504 417 504 477 306 504
    501 241 241 468 241 734 501 484 504 504 347 419 337 501 459 650 454 459 410 501 257 501 590
"""
WIDTHS = {
    is_bold: {chr(number): int(width) / 64 for number, width in enumerate(table.split(), start=ord(" "))}
    for is_bold, table in ((False, PLAIN), (True, BOLD))
}


class Drawing:
    """A rendered panel: boxes (left, top, right, bottom) of its texts, its plot and the drawn lines."""

    def __init__(self, root):
        self.root = root
        _, _, *self.size = map(float, root.get("viewBox").split())
        self.texts = [
            (node, "".join(node.itertext()) if len(node) == 0 else node[0].tail) for node in root.iter(f"{SVG}text")
        ]
        grid = [node for node in root.iter(f"{SVG}line") if node.get("class") == "grid"]
        heights = [float(node.get("y1")) for node in grid]
        self.plot = float(grid[0].get("x1")), min(heights), float(grid[0].get("x2")), max(heights)
        ends = [(node, text) for node, text in self.texts if node.get("text-anchor") == "end"]
        self.ticks = [(number_of(text), height) for (_, text), height in zip(ends, heights, strict=True)]
        self.names = [box_of(node, text) for node, text in self.texts if node.get("class") == "name"]
        self.pieces = [
            [tuple(map(float, place.split(","))) for place in node.get("points").split()]
            for node in root.iter(f"{SVG}polyline")
        ]
        self.dots = [(float(node.get("cx")), float(node.get("cy"))) for node in root.iter(f"{SVG}circle")]

    def rects(self):
        """Return (left, top, right, bottom, color) of each bar."""
        sizes = [
            [*(float(node.get(key)) for key in ("x", "y", "width", "height")), node.get("fill")]
            for node in self.root.iter(f"{SVG}rect")
        ]
        return [(x, y, x + width, y + height, color) for x, y, width, height, color in sizes]

    def value_at(self, height):
        """Return the value at a height of the plot, computed from the texts of the lowest and the highest tick."""
        (low, bottom), (high, top) = min(self.ticks), max(self.ticks)
        share = (bottom - height) / (bottom - top)
        is_log = low > 0 and high > 7 * low  # of an axis with so few ticks
        return low * (high / low) ** share if is_log else low + share * (high - low)


def number_of(text):
    """Return the number in the text of a tick."""
    found = re.fullmatch(r"(-?[\d.]+(?:e-?\d+)?)([kMG]?)", text.replace(",", ""))
    assert found, text
    return float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]]


def box_of(node, text):
    assert charts.FONT_SIZE == 11, "measure the characters again"
    widths = WIDTHS[node.get("font-weight") == "bold"]
    width = sum(charts.FONT_SIZE if c > "\u2e80" else widths[c] for c in text or "")  # a font of squares for CJK
    left = float(node.get("x")) - {"end": width, "middle": width / 2}.get(node.get("text-anchor"), 0)
    return left, float(node.get("y")) - 9, left + width, float(node.get("y")) + 3


def apart(first, second):
    return first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]


def drawn(title, lines, *, from_zero=False):
    """Return the svg element of a panel."""
    text = charts.panel(title, lines, from_zero=from_zero)
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def panels_of(text):
    """Return the title and the svg element of each panel in an SVG file."""
    inside = ElementTree.fromstring(text).findall(f"{SVG}svg")
    return [(panel.findtext(f"{SVG}title"), panel) for panel in inside]


def check(root, lines, *, from_zero=False):
    """Check all rules of a readable panel and return its Drawing."""
    drawing = Drawing(root)
    width, height = drawing.size
    left, top, right, bottom = drawing.plot
    boxes = [box_of(node, text) for node, text in drawing.texts]
    said = [text for _, text in drawing.texts]
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= width and b[3] <= height for b in boxes), list(
        zip(said, boxes, strict=True)
    )
    assert all(apart(*pair) for pair in combinations(boxes, 2)), said
    assert all(box[1] > bottom for box in drawing.names), "the legend is below the plot"
    for x, y in [*drawing.dots, *(place for piece in drawing.pieces for place in piece)]:
        assert left - 0.06 <= x <= right + 0.06 and top - 0.06 <= y <= bottom + 0.06
    values = [value for value, _ in drawing.ticks]
    assert 2 <= len(values) <= 7 and values == sorted(set(values)), said
    assert not from_zero or 0 in values
    finite = [y for line in lines.values() for _, y in line if math.isfinite(y)]
    places = [y for _, y in [*drawing.dots, *(place for piece in drawing.pieces for place in piece)]]
    for value, place in ((min(finite), max(places)), (max(finite), min(places))) if finite else ():
        shown, room = drawing.value_at(place), 1.5 / (bottom - top)  # a pixel and a half
        is_near = abs(shown - value) <= room * (values[-1] - values[0])
        assert is_near or abs(math.log(shown / value)) <= room * math.log(values[-1] / values[0]), (value, shown, said)
    return drawing
