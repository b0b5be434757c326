"""OUT/report.html: a summary of a training run on one self-contained page."""

import html
import math
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qwen_vl.evaluation.metrics.own_tasks import TASKS
from qwen_vl.files import read_entries
from qwen_vl.training.held_out import answer_log, answer_table

from .callbacks import METRICS_FILE
from .charts import Line, panel

Entries = list[dict[str, Any]]  # of metrics.jsonl

REPORT_FILE = "report.html"
PANELS = (  # title, keys drawn together, whether the axis has a 0
    ("Loss", ("loss", "eval_loss"), False),
    ("Answers, percent", ("eval_score", *(f"eval_{name}_{task.main}" for name, task in TASKS.items())), True),
    ("Learning rate", ("learning_rate",), True),
    ("Gradient norm", ("grad_norm",), False),
    ("Tokens a second", ("tokens_per_second",), True),
    ("Shares: waiting for data, padding, MFU", ("data_wait", "padding", "mfu"), True),
    ("Peak memory, GiB", ("memory_gib",), True),
)
LIBRARIES = ("torch", "transformers", "accelerate", "peft")
HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training report</title>
"""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1000px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; display: block; max-width: 100%; overflow-x: auto; }
td, th { padding: .2em .9em .2em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
td { overflow-wrap: anywhere; } td:first-child, .number { white-space: nowrap; } .number { text-align: right; }
svg { font: 11px system-ui, sans-serif; max-width: 100%; height: auto; margin: 0 1em 1em 0; vertical-align: top; }
"""


def write(output_dir: str | Path, *, settings: Mapping[str, Any], trained: Sequence[Any]) -> Path:
    """Write report.html into an output folder, from the metrics.jsonl there; return its path.

    settings: {flag: value} of the run. trained: the rows of `param_groups.rows`.
    """
    output_dir = Path(output_dir)
    entries = read_entries(output_dir / METRICS_FILE)
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
        panel("Loss of each source", sources(entries), from_zero=False),
        answers_table(output_dir) if settings.get("eval_generate") else "",
        phases_table(entries),
        "<h2>What trained</h2>",
        _table(["part", "trains", "parameters", "share", "learning rate", "weight decay"], cells),
        "<h2>Settings that are not the default</h2>",
        _table(["flag", "value"], [[f"--{name}", _shown(value)] for name, value in settings.items()]),
    ]
    path = output_dir / REPORT_FILE
    text = "\n".join(part for part in parts if part)
    path.write_text(f"{HEAD}<style>{STYLE}</style>\n{text}\n</html>\n", encoding="utf-8")
    return path


def summary(entries: Entries) -> list[list[Any]]:
    """Return [[name, value], ..], the first lines of a report."""
    lines: list[list[Any]] = [["finished", time.strftime("%Y-%m-%d %H:%M")]]
    lines.append(["steps", max((entry["step"] for entry in entries), default=0)])
    steps = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    if steps:
        first, last = steps[0], steps[-1]
        lines.append(["loss", f"{_loss(first['loss'])} at step {first['step']}, {_loss(last['loss'])} at the end"])
    if evaluations:
        best = min(evaluations, key=lambda entry: entry["eval_loss"] if math.isfinite(entry["eval_loss"]) else math.inf)
        lines.append(["evaluation loss", f"{_loss(evaluations[-1]['eval_loss'])} at the end, "
                      f"best {_loss(best['eval_loss'])} at step {best['step']}"])  # fmt: skip
    for key, name, text in (("tokens_per_second", "tokens a second", "{:,.0f}"), ("mfu", "MFU", "{:.1%}"),
                            ("data_wait", "waiting for data", "{:.1%}"), ("padding", "padding", "{:.1%}")):  # fmt: skip
        values = [entry[key] for entry in steps if key in entry]
        if values:
            lines.append([name, text.format(sum(values) / len(values))])
    if any("memory_gib" in entry for entry in steps):
        lines.append(["peak memory", f"{max(entry.get('memory_gib', 0) for entry in steps):.2f} GiB"])
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES]
    return [*lines, ["device", device_name()],
            ["versions", ", ".join([f"Python {platform.python_version()}", *versions])]]  # fmt: skip


def device_name() -> str:
    """Return the name of the accelerator, or the number of threads without one."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return f"CPU, threads: {torch.get_num_threads()}"
    module = torch.get_device_module(device)
    return module.get_device_name() if hasattr(module, "get_device_name") else device.type  # that of Apple has no name


def curves(entries: Entries, keys: Sequence[str]) -> dict[str, Line]:
    """Return {key: [(step, value), ..]} of the keys that were logged."""
    found = {
        key: [(entry["step"], entry[key]) for entry in entries if isinstance(entry.get(key), (int, float))]
        for key in keys
    }
    return {key: points for key, points in found.items() if points}


def sources(entries: Entries) -> dict[str, Line]:
    """Return {name: [(step, loss), ..]} of the sources of the data."""
    found = curves(entries, sorted(_keys(entries, "loss/")))
    return {key.removeprefix("loss/"): points for key, points in found.items()}


def phases_table(entries: Entries) -> str:
    """Return a titled table of the mean time of each phase of the sampled steps; "" if no step was sampled."""
    sampled = [entry for entry in entries if "time/other" in entry]
    if not sampled:
        return ""
    means = {
        key.partition("/")[2]: sum(e.get(key, 0) for e in sampled) / len(sampled) for key in _keys(sampled, "time/")
    }
    whole = sum(means.values()) or 1
    rows = [[name.replace("_", " "), f"{1000 * mean:.2f}", f"{mean / whole:.1%}"] for name, mean in means.items()]
    table = _table(["phase", "ms", "share"], [*rows, ["all", f"{1000 * whole:.2f}", ""]])
    return f"<h2>Where the time of a step went</h2>\n{table}"


def answers_table(output_dir: Path) -> str:
    """Return a titled table of how answers to held-out questions changed over the steps; "" if none were asked."""
    head, rows = answer_table.columns(answer_log.read(output_dir / answer_log.FILE))
    if not rows:
        return ""
    said = f"<p>Those that changed most; all are in {answer_log.FILE}. Each has its score, 0 to 1.</p>"
    return f"<h2>Answers to held-out questions</h2>\n{said}\n{_table(head, rows)}"


def _keys(entries: Entries, prefix: str) -> list[str]:
    """Return all keys with a prefix, in the order of their first entry."""
    return list(dict.fromkeys(key for entry in entries for key in entry if key.startswith(prefix)))


def _loss(value: float) -> str:
    """Return the text of a loss; a very small one does not become 0."""
    return f"{value:.4f}" if not 0 < abs(value) < 1e-3 else f"{value:.2e}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(head: list[str], rows: list[list]) -> str:
    """Return an HTML table. Columns of numbers are right-aligned if the table has a heading."""
    numbers = {n for n in range(len(head)) if any(head) and all(_is_number(row[n]) for row in rows)}

    def line(cells: list, tag: str) -> str:
        marks = [' class="number"' if n in numbers else "" for n in range(len(cells))]
        inside = (f"<{tag}{mark}>{html.escape(str(cell))}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    top = line(head, "th") if any(head) else ""
    return "<table>" + top + "".join(line(row, "td") for row in rows) + "</table>"


def _is_number(cell: object) -> bool:
    """Return whether a cell holds a number or a percentage, or is empty."""
    return re.fullmatch(r"-|(-?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?)?", str(cell)) is not None
