"""Curves and bars as SVG: axes with round numbers, the legend below the plot, every text inside the image."""

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import groupby
from typing import NamedTuple

COLORS = ("#1f6fb2", "#d1495b", "#3a8f5c", "#8a5fbf", "#b8750b", "#5b6770", "#1d8f8f", "#a34f91")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # of the second, third .. line of a color
WIDTH, PLOT_HEIGHT, FONT_SIZE, LINE_HEIGHT = 460, 160, 11, 16
TITLE_HEIGHT, RIGHT, TICK_GAP = 26, 14, 6
NUM_TICKS = 5  # at the most, of an axis
DECADES_OF_LOG = 3  # positive values that span more have an axis by powers of ten
POINTS_SHOWN = 20  # a line of more points shows none of them by itself
NAME_ROOM = 190  # of a name in the legend; the whole one stands in a tooltip
SMALLEST, LARGEST = 1e-100, 1e100  # below the first a value counts as 0, above the second as not finite

Line = list[tuple[float, float]]  # (step, value), ..; a value that is not finite is a gap
Place = Callable[[float, float], tuple[float, float]]  # from (step, value) to a point of the image


class Axis(NamedTuple):
    """One axis: its range, (value, text) of each tick, and whether it goes by powers of ten."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies between the low end of the axis, 0, and the high one, 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class Figure(NamedTuple):
    """One drawing, WIDTH wide: the SVG inside its svg element."""

    height: int
    content: str

    def element(self, at: str = "") -> str:
        """Return the svg element; `at`: attributes that place it in another one."""
        size = f'viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" height="{self.height}"'
        return f'<svg {at}{size} role="img">{self.content}</svg>'


def panel(title: str, lines: dict[str, Line], *, from_zero: bool) -> str:
    """Return the svg element of `curves`, for an HTML page; "" without any point."""
    figure = curves(title, lines, from_zero=from_zero)
    return figure.element() if figure else ""


def sheet(figures: Sequence[Figure], *, columns: int) -> str:
    """Return an SVG file of figures in rows, on white."""
    parts, top = [], 0
    for first in range(0, len(figures), columns):
        row = figures[first : first + columns]
        parts += [figure.element(f'x="{WIDTH * column}" y="{top}" ') for column, figure in enumerate(row)]
        top += max(figure.height for figure in row)
    width = WIDTH * min(columns, len(figures))
    size = f'viewBox="0 0 {width} {top}" width="{width}" height="{top}"'
    style = f"font: {FONT_SIZE}px system-ui, sans-serif"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"])


def curves(title: str, lines: dict[str, Line], *, from_zero: bool) -> Figure | None:
    """Return a figure of the lines with its axes; None without any point.

    from_zero: whether the axis of values has a 0; else it may go by powers of ten.
    """
    points = [(x, y) for line in lines.values() for x, y in line]
    if not points:
        return None
    finite = [y for _, y in points if is_finite(y)]
    axes = step_axis([x for x, _ in points]), value_axis(finite or [0.0], from_zero=from_zero)
    lost = len(points) - len(finite)

    def content(place: Place) -> Iterator[str]:
        for index, line in enumerate(lines.values()):
            yield from drawn(line, place, stroke_of(index))

    note = f"{lost:,} of {len(points):,} values are not finite" if lost else ""
    return framed(title, axes, content, names=list(lines), note=note)


def bars(title: str, groups: dict[str, dict[str, float]]) -> Figure:
    """Return a figure of bars from zero; groups: {group: {name: value}}. Each name has a color."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    across = Axis(-0.5, len(groups) - 0.5, [(float(index), group) for index, group in enumerate(groups)])
    up = value_axis([value for group in groups.values() for value in group.values()], from_zero=True)
    thick = 0.8 / len(names)  # of the room of a group

    def content(place: Place) -> Iterator[str]:
        for index, group in enumerate(groups.values()):
            for name, value in group.items():
                number, start = names.index(name), index - 0.4 + thick * names.index(name)
                (left, top), (right, bottom) = place(start, max(value, 0)), place(start + thick, min(value, 0))
                color = COLORS[number % len(COLORS)]
                size = f'width="{right - left - 1:.1f}" height="{bottom - top:.1f}"'
                yield f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{color}"/>'

    return framed(title, (across, up), content, names=names)


def framed(
    title: str, axes: tuple[Axis, Axis], content: Callable[[Place], Iterator[str]], *, names: list[str], note: str = ""
) -> Figure:
    """Return a figure: title, axes, what `content` gives for a place function, legend of the names, a note below."""
    across, up = axes
    left = TICK_GAP + 4 + max(text_width(text) for _, text in up.ticks)
    bottom, room = TITLE_HEIGHT + PLOT_HEIGHT, WIDTH - left - RIGHT
    rows = legend_rows(names, WIDTH - 6) if len(names) > 1 else []

    def place(x: float, y: float) -> tuple[float, float]:
        return left + room * across.share(x), bottom - PLOT_HEIGHT * up.share(y)

    parts = [
        f'<title>{escape(title)}</title><text x="6" y="15" font-weight="bold">{escape(title)}</text>',
        *grid(across, up, place),
        *content(place),
    ]
    for row, keys in enumerate(rows):
        parts += legend(keys, bottom + LINE_HEIGHT * (row + 2.4))
    if note:
        parts.append(f'<text class="name" x="6" y="{bottom + LINE_HEIGHT * (len(rows) + 2.4):.1f}">{note}</text>')
    return Figure(bottom + LINE_HEIGHT * (2 + len(rows) + bool(note)), "".join(parts))


def grid(across: Axis, up: Axis, place: Place) -> Iterator[str]:
    """Yield the lines and texts of both axes."""
    left, right = place(across.low, up.low)[0], place(across.high, up.low)[0]
    for value, text in up.ticks:
        y = place(across.low, value)[1]
        yield f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - TICK_GAP:.1f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    y = place(across.low, up.low)[1]
    for step, text in across.ticks:
        x, half = place(step, up.low)[0], text_width(text) / 2
        x = min(max(x, half + 2), WIDTH - half - 2)
        yield f'<text x="{x:.1f}" y="{y + LINE_HEIGHT:.1f}" text-anchor="middle">{escape(text)}</text>'


def drawn(line: Line, place: Place, stroke: str) -> Iterator[str]:
    """Yield the SVG of a line, in pieces where values are missing; a piece of one point is a dot."""
    shows_points, dots = sum(is_finite(y) for _, y in line) <= POINTS_SHOWN, []
    for has_values, piece in groupby(line, key=lambda point: is_finite(point[1])):
        places = [place(x, y) for x, y in piece] if has_values else []
        if len(places) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in thinned(places))
            yield f'<polyline points="{path}" fill="none" stroke-width="1.5" {stroke}/>'
        if len(places) == 1 or shows_points:
            dots += places
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="none" {stroke}/>' for x, y in thinned(dots))


def thinned(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the first, lowest, highest and last place of each pixel's width: what can be seen of 100,000 points."""
    kept = []
    for _, group in groupby(places, key=lambda place: round(place[0])):
        column = list(group)
        heights = [y for _, y in column]
        wanted = {0, len(column) - 1, heights.index(min(heights)), heights.index(max(heights))}
        kept += [column[n] for n in sorted(wanted)]
    return kept


def legend_rows(names: list[str], room: float) -> list[list[tuple[float, str, str]]]:
    """Return rows of (x, name, stroke) that hold the names of all lines, in order, within `room` from x = 6."""
    rows: list[list[tuple[float, str, str]]] = [[]]
    x = 6.0
    for index, name in enumerate(names):
        width = 24 + text_width(shortened(name)) + 14
        if rows[-1] and x + width > room:
            rows.append([])
            x = 6.0
        rows[-1].append((x, name, stroke_of(index)))
        x += width
    return rows


def legend(names: list[tuple[float, str, str]], y: float) -> Iterator[str]:
    """Yield the SVG of a row of the legend with its texts at height `y`."""
    for x, name, stroke in names:
        yield f'<path class="key" d="M{x:.1f} {y - 4:.1f}h18" stroke-width="2" {stroke}/>'
        tooltip = f"<title>{escape(name)}</title>"
        yield f'<text class="name" x="{x + 24:.1f}" y="{y:.1f}">{tooltip}{escape(shortened(name))}</text>'


def stroke_of(index: int) -> str:
    """Return the SVG attributes that distinguish a line from the others."""
    dash = DASHES[index // len(COLORS) % len(DASHES)]
    return f'stroke="{COLORS[index % len(COLORS)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def shortened(name: str) -> str:
    """Return a name shortened in the middle, if necessary, to fit NAME_ROOM."""
    if text_width(name) <= NAME_ROOM:
        return name
    half = next(n for n in range(len(name) // 2, 0, -1) if text_width(f"{name[:n]}..{name[-n:]}") <= NAME_ROOM)
    return f"{name[:half]}..{name[-half:]}"


def step_axis(steps: list[float]) -> Axis:
    """Return the axis of steps: it ends where they do, and its ticks are whole numbers."""
    low, high = min(steps), max(steps)
    if low == high:
        return Axis(low - 1, high + 1, [(low, number(low, 1, low))])
    step = max(1, round_step((high - low) / NUM_TICKS))
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(low, high, [(tick, number(tick, step, high)) for tick in ticks])


def value_axis(values: list[float], *, from_zero: bool) -> Axis:
    """Return the axis of finite values, from tick to tick; logarithmic if they are positive and span many decades."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= 10**DECADES_OF_LOG and not from_zero:
        return log_axis(low, high)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    largest = max(abs(low), abs(high))
    if high - low < max(1e-9 * largest, SMALLEST):  # too close to tell apart
        around = largest / 10 if largest > SMALLEST else 1.0
        low, high = (low, low + around) if from_zero else (low - around * (low != 0), high + around)
    step = round_step((high - low) / (NUM_TICKS - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [step * n for n in range(first, last + 1)]
    largest = max(abs(ticks[0]), abs(ticks[-1]))
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), [(tick, number(tick, step, largest)) for tick in ticks])


def log_axis(low: float, high: float) -> Axis:
    """Return an axis by powers of ten, with every n-th of them as a tick."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = math.ceil((last - first) / NUM_TICKS)
    last += -(last - first) % every
    plain = first >= -3 and last <= 5
    ticks = [(10.0**n, f"{10.0**n:,.{max(0, -n)}f}" if plain else f"1e{n}") for n in range(first, last + 1, every)]
    return Axis(min(low, ticks[0][0]), max(high, ticks[-1][0]), ticks, is_log=True)


def round_step(step: float) -> float:
    """Return the smallest number not below `step` that is 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def number(value: float, step: float, largest: float) -> str:
    """Return the text of a tick, exact and short; its neighbors are `step` away, `largest` is of the whole axis.

    Thousands and millions become k and M; very small and very large numbers become 2e-5 or 2e15.
    """
    if abs(value) < step / 1e6:
        return "0"
    if 1e-3 <= abs(largest) < 1e12:
        unit, name = next(((u, n) for u, n in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(largest) >= u), (1, ""))
        if step >= unit / 100 and abs(largest) >= 1e4:
            return f"{value / unit:.{decimals(step / unit)}f}{name}"
        return f"{value:,.{decimals(step)}f}"
    digits = math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9)
    mantissa, _, exponent = f"{value:.{max(0, digits)}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def decimals(step: float) -> int:
    """Return how many decimals distinguish multiples of a step that is 1, 2 or 5 times a power of ten."""
    return max(0, -math.floor(math.log10(step) + 1e-9))


def is_finite(value: float) -> bool:
    """Return whether a value can be drawn."""
    return abs(value) < LARGEST  # neither is inf, nor is NaN


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Return an upper bound of a text's width: that in DejaVu Sans, the widest of the common fonts."""
    return sum(
        size * (1.05 if unicodedata.east_asian_width(c) in "WF" or c in "mwMWQO@%" else 0.79 if c.isupper() else 0.67)
        for c in text
    )
