"""Geometry of curves and bars: texts are measured as in a real font, positions are read back from the SVG."""

import itertools
import math
import random
import re

import pytest
from helpers.drawings import NAN, check, drawn, panels_of

from qwen_vl.training.monitor import charts


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
    check(drawn("Shares: waiting for data, padding, MFU", lines, from_zero=from_zero), lines, from_zero=from_zero)
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
        from_zero = generator.random() < 0.4
        check(drawn("Loss", lines, from_zero=from_zero), lines, from_zero=from_zero)


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
    drawing = check(drawn("Loss", CASES["gaps"]), CASES["gaps"])
    assert [len(piece) for piece in drawing.pieces] == [2] and len(drawing.dots) == 4
    assert "6 of 10 values are not finite" in [text for _, text in drawing.texts]
    assert "not finite" not in charts.panel("Loss", CASES["a loss"], from_zero=False)


def test_a_long_run_makes_a_small_page_that_shows_its_extremes():
    generator = random.Random(0)
    values = [2 + generator.random() for _ in range(100_000)]
    values[77_777], values[33_333] = 9.0, 1.0
    lines = {"loss": line(*values), "holes": [(n, NAN if n % 2 else v) for n, v in line(*values)]}
    drawing = check(drawn("Loss", lines), lines)
    assert len(charts.panel("Loss", lines, from_zero=False)) < 160_000
    heights = [y for _, y in drawing.pieces[0]]
    assert drawing.value_at(min(heights)) == pytest.approx(9, abs=0.1)
    assert drawing.value_at(max(heights)) == pytest.approx(1, abs=0.1)


def test_lines_of_many_sources_can_be_told_apart():
    lines = {name: line(1.0, 2.0) for name in NAMES}
    strokes = re.findall(r'<polyline [^>]*?(stroke="[^/]*)/>', charts.panel("x", lines, from_zero=False))
    keys = re.findall(r'<path [^>]*?(stroke="[^/]*)/>', charts.panel("x", lines, from_zero=False))
    assert len(set(strokes)) == len(NAMES) and [key.strip() for key in keys] == [s.strip() for s in strokes]


def test_bars_have_heights_of_their_values_and_colors_of_their_names():
    groups = {"tiny": {"ours": 90.0, "theirs": 45.0}, "small & new": {"theirs": 20.0}, "down": {"ours": -10.0}}
    bars = charts.bars("Tokens <a second>", groups)
    ((title, root),) = panels_of(charts.sheet([bars], columns=3))
    drawing = check(root, {})
    assert title == "Tokens <a second>" and 0 in [value for value, _ in drawing.ticks]
    assert set(groups) < {text for _, text in drawing.texts}
    rects = drawing.rects()
    sizes = [drawing.value_at(top) - drawing.value_at(bottom) for _, top, _, bottom, _ in rects]
    assert sizes == pytest.approx([90, 45, 20, 10], abs=0.2)
    assert [drawing.value_at(bottom) for *_, bottom, _ in rects] == pytest.approx([0, 0, 0, -10], abs=0.2)
    assert [color for *_, color in rects] == [charts.COLORS[n] for n in (0, 1, 1, 0)]
    keys = [node.get("stroke") for node in root.iter() if node.get("class") == "key"]
    assert keys == list(charts.COLORS[:2])
    assert all(one[2] <= other[0] for one, other in itertools.pairwise(rects)), "bars lie side by side"


def test_a_sheet_places_its_figures_in_rows_without_overlap():
    one, other = (charts.curves("a", {"b": line(1.0, 2.0)}, from_zero=True), charts.bars("c", {"d": {"e": 1, "f": 2}}))
    text = charts.sheet([one, other, one], columns=2)
    panels = [node for _, node in panels_of(text)]
    places = [tuple(float(node.get(key)) for key in ("x", "y", "width", "height")) for node in panels]
    assert [place[:2] for place in places] == [(0, 0), (charts.WIDTH, 0), (0, max(one.height, other.height))]
    assert f'viewBox="0 0 {2 * charts.WIDTH} {max(one.height, other.height) + one.height}"' in text.splitlines()[0]
    assert places[1][3] > places[0][3] == one.height
    assert charts.sheet([one], columns=4).startswith(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {charts.WIDTH} '
    )
