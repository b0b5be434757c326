"""OUT/report.html: what a training did, on one page that needs nothing beside it."""

import html
import platform
import time
from importlib import metadata
from pathlib import Path

import torch

from .callbacks import METRICS_FILE, read_metrics

REPORT_FILE = "report.html"
PANELS = (  # title, keys drawn together, whether the axis starts at 0
    ("Loss", ("loss", "eval_loss"), False),
    ("Learning rate", ("learning_rate",), True),
    ("Gradient norm", ("grad_norm",), True),
    ("Tokens a second", ("tokens_per_second",), True),
    ("Shares: waiting for data, padding, MFU", ("data_wait", "padding", "mfu"), True),
    ("Peak memory, GiB", ("memory_gib",), True),
)
COLORS = ("#1f6fb2", "#d1495b", "#3a8f5c", "#8a5fbf", "#c98a1b", "#5b6770", "#2aa1a1", "#a34f91")
WIDTH, HEIGHT, MARGIN = 460, 220, 46
LIBRARIES = ("torch", "transformers", "accelerate", "peft")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; }
td, th { padding: .2em .9em .2em 0; text-align: left; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; } svg { font: 11px system-ui, sans-serif; margin: 0 1em 1em 0; }
code { overflow-wrap: anywhere; }
"""


def write(output_dir, *, settings, trained):
    """Write report.html into an output folder, from the metrics.jsonl there; returns its path.

    settings: {flag: value} that the run was given. trained: the rows of `tuning.rows`.
    """
    output_dir = Path(output_dir)
    entries = read_metrics(output_dir / METRICS_FILE)
    total = sum(row.total for row in trained)
    cells = [
        [row.part, "yes" if row.trainable else "no", f"{row.total:,}", f"{row.total / total:.1%}",
         _number(row.learning_rate), _number(row.weight_decay)]
        for row in trained
    ]  # fmt: skip
    parts = [
        f"<h1>Training of {html.escape(output_dir.name)}</h1>",
        _table(["", ""], summary(entries)),
        "<h2>Curves</h2>",
        *(panel(title, curves(entries, keys), from_zero=from_zero) for title, keys, from_zero in PANELS),
        panel("Loss of each source", curves(entries, sorted(_keys(entries, "loss/"))), from_zero=False),
        "<h2>Where the time of a step went</h2>",
        phases_table(entries),
        "<h2>What trained</h2>",
        _table(["part", "trains", "parameters", "share", "learning rate", "weight decay"], cells),
        "<h2>Settings that are not the default</h2>",
        _table(["flag", "value"], [[f"--{name}", _shown(value)] for name, value in settings.items()]),
    ]
    path = output_dir / REPORT_FILE
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Training report</title><style>{STYLE}</style>'
    path.write_text(head + "\n".join(part for part in parts if part) + "</html>\n", encoding="utf-8")
    return path


def summary(entries):
    """[[name, text], ..]: the first lines of a report."""
    steps = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    lines = [["finished", time.strftime("%Y-%m-%d %H:%M")], ["steps", max((e["step"] for e in entries), default=0)]]
    if steps:
        lines.append(["loss", f"{steps[0]['loss']:.4f} at step {steps[0]['step']}, {steps[-1]['loss']:.4f} at the end"])
    if evaluations:
        best = min(evaluations, key=lambda entry: entry["eval_loss"])
        lines.append(["evaluation loss", f"{evaluations[-1]['eval_loss']:.4f} at the end, best {best['eval_loss']:.4f} "
                      f"at step {best['step']}"])  # fmt: skip
    for key, name, text in (("tokens_per_second", "tokens a second", "{:,.0f}"), ("mfu", "MFU", "{:.1%}"),
                            ("data_wait", "waiting for data", "{:.1%}"), ("padding", "padding", "{:.1%}")):  # fmt: skip
        values = [entry[key] for entry in steps if key in entry]
        if values:
            lines.append([name, text.format(sum(values) / len(values))])
    memory = max((entry.get("memory_gib", 0) for entry in steps), default=0)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return [*lines, ["peak memory", f"{memory:.2f} GiB"], ["device", device],
            ["versions", ", ".join([f"Python {platform.python_version()}", *versions])]]  # fmt: skip


def curves(entries, keys):
    """{key: [(step, value), ..]} of the keys that were logged."""
    found = {key: [(entry["step"], entry[key]) for entry in entries if key in entry] for key in keys}
    return {key: points for key, points in found.items() if points}


def panel(title, lines, *, from_zero):
    """An SVG of lines over steps, each {name: [(step, value), ..]}, with its axes named; "" without any."""
    points = [(x, y) for line in lines.values() for x, y in line if y == y]  # not NaN
    if not points:
        return ""
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = min(low, 0) if from_zero else low
    span_x, span = (high_x - low_x) or 1, (high - low) or abs(high) or 1
    plot_width, plot_height = WIDTH - MARGIN - 12, HEIGHT - 2 * 26

    def place(x, y):
        return MARGIN + plot_width * (x - low_x) / span_x, 26 + plot_height * (1 - (y - low) / span)

    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" role="img"><title>{html.escape(title)}</title>',
             f'<text x="{MARGIN}" y="14" font-weight="bold">{html.escape(title)}</text>']  # fmt: skip
    for share in (0, 0.5, 1):
        value, step = low + share * span, low_x + share * span_x
        (_, y), (x, _) = place(low_x, value), place(step, low)
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        anchor = ("start", "middle", "end")[round(2 * share)]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="{anchor}">{step:.0f}</text>')
    for line, color in zip(lines.values(), COLORS * len(lines), strict=False):
        places = [place(x, y) for x, y in line if y == y]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in places if len(places) < 20]
    if len(lines) > 1:
        for index, (name, color) in enumerate(zip(lines, COLORS * len(lines), strict=False)):
            x, y = WIDTH - 14, 40 + 14 * index
            parts.append(f'<text x="{x}" y="{y}" text-anchor="end" fill="{color}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def phases_table(entries):
    """The mean seconds of each phase of the sampled steps, and their shares; "" if no step was sampled."""
    sampled = [entry for entry in entries if "time/other" in entry]
    if not sampled:
        return ""
    means = {key.partition("/")[2]: sum(e[key] for e in sampled) / len(sampled) for key in _keys(sampled, "time/")}
    whole = sum(means.values()) or 1
    rows = [[name.replace("_", " "), f"{1000 * mean:.2f}", f"{mean / whole:.1%}"] for name, mean in means.items()]
    return _table(["phase", "ms", "share"], [*rows, ["all", f"{1000 * whole:.2f}", ""]])


def _keys(entries, prefix):
    """All keys with a prefix, in the order in which they came."""
    return list(dict.fromkeys(key for entry in entries for key in entry if key.startswith(prefix)))


def _number(value):
    return "-" if value is None else f"{value:g}"


def _shown(value):
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(head, rows):
    """An HTML table; cells that are numbers stand on the right."""

    def line(cells, tag):
        marks = [' class="number"' if _is_number(cell) else "" for cell in cells]
        inside = "".join(
            f"<{tag}{mark}>{html.escape(str(cell))}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
        )
        return f"<tr>{inside}</tr>"

    top = line(head, "th") if any(head) else ""
    return "<table>" + top + "".join(line(row, "td") for row in rows) + "</table>"


def _is_number(cell):
    return str(cell).replace(",", "").rstrip("%").replace(".", "", 1).isdigit()
