"""Geometry of the curves in report.html: texts are measured in a real font, positions are read back from the SVG."""

import math
import random
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import ImageFont

from qwen_vl.training.monitor import charts

matplotlib = pytest.importorskip("matplotlib")
FONTS = Path(matplotlib.get_data_path(), "fonts/ttf")
PLAIN, BOLD = (ImageFont.truetype(str(FONTS / f"DejaVuSans{kind}.ttf"), charts.FONT_SIZE) for kind in ("", "-Bold"))
SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


class Drawing:
    """A rendered panel: boxes (left, top, right, bottom) of its texts, its plot and the drawn lines."""

    def __init__(self, title, lines, *, from_zero=False):
        text = charts.panel(title, lines, from_zero=from_zero)
        self.root = root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
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
    font = BOLD if node.get("font-weight") else PLAIN
    width = sum(
        charts.FONT_SIZE if ord(c) > 0x2E80 else font.getlength(c) for c in text or ""
    )  # a font of squares for CJK
    left = float(node.get("x")) - {"end": width, "middle": width / 2}.get(node.get("text-anchor"), 0)
    return left, float(node.get("y")) - 9, left + width, float(node.get("y")) + 3


def apart(first, second):
    return first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]


def check(title, lines, *, from_zero=False):
    """Check all rules of a readable panel and return its Drawing."""
    drawing = Drawing(title, lines, from_zero=from_zero)
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


def line(*values, first=1):
    return list(enumerate(values, start=first))


NAMES = [f"source {n}" for n in range(30)] + [f"/data/{'x' * 80}{n}.json" for n in range(2)]
CASES = {
    "a loss": {"loss": line(7.97, 7.7, 7.54), "eval_loss": [(2, 7.6)]},
    "tokens a second": {"tokens": line(33_000, 21_000, 33_456)},
    "spikes": {"loss": [(n, 10 ** (-7 + n % 13)) for n in range(1, 400)]},
    "one point": {"loss": [(7, 2.5)]},
    "one step of several": {"a": [(7, 2.5)], "b": [(7, 3.5)]},
    "equal values": {"loss": line(0.5, 0.5, 0.5)},
    "nearly equal values": {"loss": line(0.5, 0.5 + 1e-15, 0.5)},
    "zeros": {"loss": line(0.0, 0.0)},
    "negative values": {"loss": line(-1.0, -3.5e6, -2.0)},
    "both signs": {"loss": line(-1e-7, 1e5, 3.0)},
    "gaps": {"loss": line(3.0, NAN, 2.0, 1.9, NAN, NAN, math.inf, 1.0), "eval_loss": line(NAN, NAN)},
    "no value at all": {"loss": line(NAN, math.inf, -math.inf)},
    "huge": {"loss": line(3e38, 1.0, 1e30)},
    "beyond": {"loss": line(1e308, -1e308, 5.0)},
    "denormal": {"loss": line(5e-324, 1e-320, 0.0)},
    "late steps": {"loss": [(10_000_000 + n, 2.0 + n) for n in range(29)]},
    "two steps": {"loss": [(1, 1.0), (2, 2.0)]},
    "many sources": {name: line(1.0 + n, 2.0, 0.5 * n) for n, name in enumerate(NAMES)},
    "names of all kinds": dict.fromkeys(("数据集" * 20, "<b>&\"it's\"</b>", "W" * 60, ""), line(1.0, 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_texts_are_whole_and_apart_and_say_where_values_lie(name, from_zero):
    limit = {"beyond": 1e308}.get(name)
    lines = {key: [(x, NAN if limit and abs(y) >= limit else y) for x, y in line] for key, line in CASES[name].items()}
    check("Shares: waiting for data, padding, MFU", lines, from_zero=from_zero)
    assert charts.panel("Loss", CASES[name], from_zero=from_zero).startswith("<svg")


def test_random_curves_of_every_size():
    generator = random.Random(5)
    for _ in range(400):
        offset = generator.choice((0.0, 0.0, 10 ** generator.uniform(-6, 14))) * generator.choice((1, 1, -1))
        size = (abs(offset) or 10 ** generator.uniform(-12, 14)) * 10 ** generator.uniform(-6, 1)
        power = generator.choice((1, 1, 1, 8))  # of which many are far below the largest
        values = [offset + size * generator.random() ** power for _ in range(generator.choice((1, 2, 5, 60)))]
        step, first = generator.choice((1, 10, 977)), generator.choice((0, 1, 64, 99_950))
        lines = {"loss": [(first + step * n, value) for n, value in enumerate(values)]}
        check("Loss", lines, from_zero=generator.random() < 0.4)


def test_numbers_are_short_and_round():
    def ticks(*values, from_zero=False):
        return [text for _, text in charts.value_axis(values, from_zero=from_zero).ticks]

    assert ticks(33_123, from_zero=True) == ["0", "10k", "20k", "30k", "40k"]
    assert ticks(5e-5, from_zero=True) == ["0", "2e-5", "4e-5", "6e-5"]
    assert ticks(1e-5, from_zero=True) == ["0", "5e-6", "1e-5"]
    assert ticks(7.54, 7.97) == ["7.4", "7.6", "7.8", "8.0"]
    assert ticks(1e-7, 1e5) == ["1e-7", "1e-4", "1e-1", "1e2", "1e5"]
    assert ticks(0.004, 8.0) == ["0.001", "0.01", "0.1", "1", "10"]
    assert ticks(1_500_000, from_zero=True) == ["0", "0.5M", "1.0M", "1.5M"]
    assert [text for _, text in charts.step_axis([1, 100_000]).ticks] == ["20k", "40k", "60k", "80k", "100k"]
    assert [text for _, text in charts.step_axis([1, 3]).ticks] == ["1", "2", "3"]


def test_gaps_stay_gaps_and_what_is_lost_is_said():
    drawing = check("Loss", CASES["gaps"])
    assert [len(piece) for piece in drawing.pieces] == [2] and len(drawing.dots) == 4
    assert "6 of 10 values are not finite" in [text for _, text in drawing.texts]
    assert "not finite" not in charts.panel("Loss", CASES["a loss"], from_zero=False)


def test_a_long_run_makes_a_small_page_that_shows_its_extremes():
    generator = random.Random(0)
    values = [2 + generator.random() for _ in range(100_000)]
    values[77_777], values[33_333] = 9.0, 1.0
    lines = {"loss": line(*values), "holes": [(n, NAN if n % 2 else v) for n, v in line(*values)]}
    drawing = check("Loss", lines)
    assert len(charts.panel("Loss", lines, from_zero=False)) < 160_000
    heights = [y for _, y in drawing.pieces[0]]
    assert drawing.value_at(min(heights)) == pytest.approx(9, abs=0.1)
    assert drawing.value_at(max(heights)) == pytest.approx(1, abs=0.1)


def test_lines_of_many_sources_can_be_told_apart():
    lines = {name: line(1.0, 2.0) for name in NAMES}
    strokes = re.findall(r'<polyline [^>]*?(stroke="[^/]*)/>', charts.panel("x", lines, from_zero=False))
    keys = re.findall(r'<path [^>]*?(stroke="[^/]*)/>', charts.panel("x", lines, from_zero=False))
    assert len(set(strokes)) == len(NAMES) and [key.strip() for key in keys] == [s.strip() for s in strokes]
