"""The report of a results folder: checkpoints x benchmarks beside published numbers, in four forms.

report.md and report.html are for people, report.csv has a line a figure, report.json has everything.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_vl.evaluation import results
from qwen_vl.evaluation.report_page import render
from qwen_vl.evaluation.safe_text import for_csv, for_markdown
from qwen_vl.evaluation.scored_runs import (
    COUNTS,
    SUBSET_WARNING,
    Run,
    columns,
    number,
    read_runs,
    rows,
    shared_settings,
    with_interval,
)
from qwen_vl.files import whole_file
from qwen_vl.terminal import markdown_table

NAME = "report"
CSV_COLUMNS = (
    *("model", "model_folder", "run", "benchmark", "title", "figure", "is_headline", "value", "low", "high"),
    *("standard_error", "unit", "count", "published", "published_model", "difference", "subset", "incomplete"),
    *("changes", "style", "num_shots", "variant", "judge", "metric", *COUNTS),
)
MAX_TEXT = 2000  # characters of a setting or a note


def write(results_dir: Path) -> list[Path]:
    """Write report.md, .csv, .json and .html of all scored runs below a results folder; return their paths.

    Raise ValueError if there are none, or a file of one is broken.
    """
    runs = read_runs(results_dir)
    texts = {"md": to_markdown(runs), "csv": to_csv(runs), "html": render(runs)}
    paths = []
    for form, text in texts.items():
        paths.append(results_dir / f"{NAME}.{form}")
        with whole_file(paths[-1]) as file:
            file.write(text.encode("utf-8"))
    paths.append(results_dir / f"{NAME}.json")
    results.write_json(paths[-1], to_dict(runs))
    return paths


def to_dict(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the report as JSON: every model, and every run with its marks and differences."""
    return {
        "subset": any(run.scores["subset"] for run in runs),
        "models": {run.model_folder: run.model for run in runs},
        "runs": [
            {
                **run.scores,
                "model_folder": run.model_folder,
                "run": run.name,
                "figures": {
                    name: {**figure, "published": run.published(name), "difference": run.difference(name)}
                    for name, figure in run.scores["figures"].items()
                },
                "counts": run.counts,
                "published_model": run.kind,
                "changes": run.changes,
                "marks": run.marks,
                "unanswered": run.worst.get("unanswered", []),
                "worst": [sample["id"] for sample in run.worst.get("samples", [])],
            }
            for run in runs
        ],
    }


def to_csv(runs: Sequence[Run]) -> str:
    """Return the report as a table with a line a figure; a run without figures, of a test split, has one line."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        for name in run.scores["figures"] or ("",):
            cells = _csv_row(run, name)
            writer.writerow({key: for_csv(value) if isinstance(value, str) else value for key, value in cells.items()})
    return stream.getvalue()


def _csv_row(run: Run, name: str) -> dict[str, Any]:
    scores, settings = run.scores, run.scores["settings"]
    figure = scores["figures"].get(name, {})
    published = run.published(name)
    return {
        **{key: figure.get(key) for key in ("value", "low", "high", "standard_error", "unit", "count")},
        **{key: settings.get(key) for key in ("style", "num_shots", "variant", "judge")},
        **{key: scores.get(key) for key in ("model", "benchmark", "title", "metric")},
        **run.counts,
        "model_folder": run.model_folder,
        "run": run.name,
        "figure": name,
        "is_headline": int(bool(name) and name == scores["headline"]),
        "published": published,
        "published_model": None if published is None else run.kind,
        "difference": run.difference(name),
        "subset": int(scores["subset"]),
        "incomplete": int(scores["incomplete"]),
        "changes": " ".join(run.changes),
    }


def to_markdown(runs: Sequence[Run]) -> str:
    """Return the report as Markdown: one table of all, then a section a run."""
    models, found = columns(runs), rows(runs)
    head = ["benchmark", *map(for_markdown, models.values())]
    table = [
        [_title(name, of_models), *(_cell(of_models.get(folder)) for folder in models)]
        for name, of_models in found.items()
    ]
    lines = ["# Evaluation", ""]
    lines += [f"**{SUBSET_WARNING}**", ""] if any(run.scores["subset"] for run in runs) else []
    lines += [f"Value \u00b1 95% interval; published: {_kinds(runs, models)}.", "", markdown_table(head, table), ""]
    lines += [f"\\* {note}" for note in _published_notes(runs)]
    for name, of_models in found.items():
        lines += ["", f"## {_title(name, of_models)}", "", *_section(of_models, models)]
    return "\n".join(lines) + "\n"


def _title(name: str, of_models: dict[str, Run]) -> str:
    title = str(next(iter(of_models.values())).scores.get("title") or name)
    return for_markdown(title if title == name else f"{title}: {name}", MAX_TEXT)


def _kinds(runs: Sequence[Run], models: dict[str, str]) -> str:
    """Return which published model each model is compared with."""
    kinds = {run.model_folder: run.kind for run in runs}
    return ", ".join(f"{kinds[folder]} for {for_markdown(name)}" for folder, name in models.items())


def _cell(run: Run | None) -> str:
    """Return the headline of a run with the published number, the difference and the marks."""
    if run is None:
        return ""
    marks = "".join(f"<br>{for_markdown(mark)}" for mark in run.marks)
    if run.headline is None:
        return f"no right answers{marks}"
    return with_interval(run.headline) + _beside(run, run.scores["headline"]) + marks


def _beside(run: Run, figure: str) -> str:
    """Return the published number of a figure and the difference, in brackets; "" without one."""
    published, difference = run.published(figure), run.difference(figure)
    if published is None or difference is None:
        return ""
    unit = run.scores["figures"][figure]["unit"]
    star = "\\*" if run.scores.get("published_note") else ""
    return f" (published {number(published, unit)}{star}, {number(difference, unit, signed=True)})"


def _published_notes(runs: Sequence[Run]) -> list[str]:
    """Return where published numbers come from, if not from the authors' repository."""
    notes = {run.scores["benchmark"]: run.scores.get("published_note") for run in runs if run.scores.get("published")}
    return [for_markdown(f"{name}: {note}", MAX_TEXT) for name, note in notes.items() if note]


def _section(of_models: dict[str, Run], models: dict[str, str]) -> list[str]:
    """Return the lines of one run: all figures, counts, notes, records without an answer, settings."""
    runs = [of_models[folder] for folder in models if folder in of_models]
    names = [for_markdown(models[run.model_folder]) for run in runs]
    figures = dict.fromkeys(name for run in runs for name in run.scores["figures"])
    lines = []
    if figures:
        table = [[for_markdown(name, MAX_TEXT), *(_figure(run, name) for run in runs)] for name in figures]
        lines += [markdown_table(["figure", *names], table), ""]
    counts = [[name.replace("_", " "), *(f"{run.counts.get(name, 0):,}" for run in runs)] for name in COUNTS]
    lines += [markdown_table(["count", *names], counts), ""]
    for run, name in zip(runs, names, strict=True):
        said = [*run.marks, *run.scores.get("notes", [])]
        said += [f"unanswered: {one['id']}: {one['error']}" for one in run.worst.get("unanswered", [])]
        lines += [f"- {name}: {for_markdown(one, MAX_TEXT)}" for one in said]
    settings = [(for_markdown(name), for_markdown(value, MAX_TEXT)) for name, value in shared_settings(runs)]
    return [*lines, "", markdown_table(["setting", "value"], [("metric", _metrics(runs)), *settings])]


def _figure(run: Run, name: str) -> str:
    figure = run.scores["figures"].get(name)
    return "" if figure is None else f"{with_interval(figure)}{_beside(run, name)} (n = {figure['count']:,})"


def _metrics(runs: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(for_markdown(run.scores.get("metric", "")) for run in runs))
