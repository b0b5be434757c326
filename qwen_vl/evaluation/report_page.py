"""report.html: the table of all runs, then each run with its worst samples, on one page without scripts or requests."""

from collections.abc import Sequence
from string import Template

from qwen_vl.evaluation.report_samples import cards
from qwen_vl.evaluation.safe_text import for_html
from qwen_vl.evaluation.scored_runs import (
    COUNTS,
    SUBSET_WARNING,
    Run,
    columns,
    number,
    rows,
    shared_settings,
    with_interval,
)

MAX_SAMPLES = 16 * 2**20  # bytes of all samples of the page; each run has the same share
MAX_TEXT = 2000  # characters of a setting or a note
MAX_NAME = 200  # characters of a name in a table
MAX_FIGURES = 200  # of a run; report.csv has all

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation</title>
<style>
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1d2430; --soft: #5a6472; --line: #dde1e7;
  --badge: #eceff3; --bad: #b3261e; --up: #1a7f4b; --right: #0a9d58; --predicted: #e0335e; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d2229; --text: #e4e8ee; --soft: #9aa5b4;
  --line: #353c47; --badge: #2b323c; --bad: #ff8a80; --up: #6fd39b; --right: #35d98b; --predicted: #ff6b8f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 20px; max-width: 1200px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", "WenQuanYi Micro Hei", "Noto Sans CJK SC", sans-serif; }
h1 { margin: 0 0 8px; font-size: 24px; }
h2 { margin: 32px 0 8px; font-size: 18px; overflow-wrap: anywhere; }
h3 { margin: 20px 0 8px; font-size: 15px; overflow-wrap: anywhere; }
h4 { margin: 0 0 8px; font-size: 14px; overflow-wrap: anywhere; }
a { color: inherit; }
.warning { padding: 8px 14px; border: 1px solid var(--bad); border-radius: 8px; color: var(--bad); }
.note, ul { color: var(--soft); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 6px 12px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.number { text-align: right; overflow-wrap: anywhere; }
.settings td { overflow-wrap: anywhere; white-space: pre-wrap; }
.beside { display: block; color: var(--soft); font-size: 13px; }
.up { color: var(--up); } .down { color: var(--bad); }
.badge { display: inline-block; margin: 2px 0 0 4px; padding: 0 8px; border-radius: 9px; background: var(--badge);
  font-size: 12px; font-weight: 400; white-space: normal; }
.badge.bad { color: var(--bad); }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); gap: 12px; }
article { min-width: 0; padding: 12px 14px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.both { display: flex; flex-wrap: wrap; gap: 14px; }
.images { flex: 0 1 auto; min-width: 0; max-width: 320px; }
.images p { margin: 4px 0; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.frame { position: relative; display: inline-block; max-width: 100%; line-height: 0; }
.frame img { max-width: 100%; height: auto; border-radius: 4px; }
.frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
rect.halo { stroke: #fff; stroke-width: 4; opacity: .65; }
rect.right { stroke: #0a9d58; } rect.predicted { stroke: #e0335e; stroke-dasharray: 7 4; }
.legend { line-height: 1.5; }
.key { display: inline-block; width: 18px; margin: 0 5px 3px 0; border-top: 3px solid #0a9d58; }
.key.predicted { margin-left: 10px; border-top: 3px dashed #e0335e; }
.images .failed { max-width: 240px; padding: 8px; border: 1px dashed var(--bad); border-radius: 6px;
  color: var(--bad); }
dl { flex: 1 1 180px; min-width: 0; margin: 0; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0 0 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.none { color: var(--soft); }
@media (max-width: 600px) { body { padding: 10px; } th, td { padding: 5px 8px; } }
</style>
</head>
<body>
$body
</body>
</html>
""")


def render(runs: Sequence[Run]) -> str:
    """Return the page of all runs."""
    models, found = columns(runs), rows(runs)
    share = MAX_SAMPLES // len(runs)
    warning = f'<p class="warning">{SUBSET_WARNING}</p>' if any(run.scores["subset"] for run in runs) else ""
    parts = ["<h1>Evaluation</h1>", warning, _overview(found, models), _published(runs)]
    for place, of_models in enumerate(found.values()):
        parts += _section(place, [of_models[folder] for folder in models if folder in of_models], models, share)
    return PAGE.substitute(body="\n".join(part for part in parts if part))


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """Return a table of HTML cells. Columns after the first are of numbers, unless it is a table of settings."""
    mark = "" if kind else ' class="number"'
    top = "".join(f"<th{mark if place else ''}>{cell}</th>" for place, cell in enumerate(head))
    body = "".join(
        f"<tr><th>{line[0]}</th>" + "".join(f"<td{mark}>{cell}</td>" for cell in line[1:]) + "</tr>\n" for line in lines
    )
    return f'<div class="scroll"><table class="{kind}"><tr>{top}</tr>\n{body}</table></div>'


def _overview(found: dict[str, dict[str, Run]], models: dict[str, str]) -> str:
    head = ["benchmark", *(f"<bdi>{for_html(name, MAX_NAME)}</bdi>" for name in models.values())]
    lines = [
        [
            f'<a href="#run-{place}">{_title(next(iter(of_models.values())))}</a>',
            *(_cell(of_models.get(folder)) for folder in models),
        ]
        for place, of_models in enumerate(found.values())
    ]
    return _table(head, lines)


def _title(run: Run) -> str:
    title = str(run.scores.get("title") or run.name)
    text = title if title == run.name else f"{title}: {run.name}"
    return f"<bdi>{for_html(text, MAX_NAME)}</bdi>"


def _cell(run: Run | None) -> str:
    """Return the headline of a run with the published number, the difference and the marks."""
    if run is None:
        return ""
    if run.headline is None:
        return f"no right answers{_badges(run)}"
    return with_interval(run.headline) + _beside(run, run.scores["headline"]) + _badges(run)


def _badges(run: Run) -> str:
    return "".join(f'<div><span class="badge">{for_html(mark, MAX_NAME)}</span></div>' for mark in run.marks)


def _beside(run: Run, figure: str) -> str:
    """Return the published number of a figure and the difference; "" without one."""
    published, difference = run.published(figure), run.difference(figure)
    if published is None or difference is None:
        return ""
    unit = run.scores["figures"][figure]["unit"]
    star = "*" if run.scores.get("published_note") else ""
    way = "up" if difference > 0 else "down"
    change = f'<span class="{way}">{number(difference, unit, signed=True)}</span>'
    return f'<span class="beside">published {number(published, unit)}{star} {change}</span>'


def _published(runs: Sequence[Run]) -> str:
    """Return what the numbers of the table are, and where published ones come from."""
    kinds = " and ".join(sorted({run.kind for run in runs}))
    notes = {run.scores["benchmark"]: run.scores.get("published_note") for run in runs if run.scores.get("published")}
    starred = [f"* {name}: {note}" for name, note in notes.items() if note]
    lines = [f"Value \u00b1 95% interval, clustered by image. Published numbers are those of {kinds}.", *starred]
    return '<p class="note">' + "<br>".join(for_html(line, MAX_TEXT) for line in lines) + "</p>"


def _section(place: int, runs: Sequence[Run], models: dict[str, str], share: int) -> list[str]:
    """Return the parts of one run of one or several models."""
    names = [f"<bdi>{for_html(models[run.model_folder], MAX_NAME)}</bdi>" for run in runs]
    parts = [f'<h2 id="run-{place}">{_title(runs[0])}</h2>']
    figures = list(dict.fromkeys(name for run in runs for name in run.scores["figures"]))
    if figures:
        lines = [[for_html(name, MAX_NAME), *(_figure(run, name) for run in runs)] for name in figures[:MAX_FIGURES]]
        parts.append(_table(["figure", *names], lines))
    if len(figures) > MAX_FIGURES:
        parts.append(f'<p class="note">{len(figures) - MAX_FIGURES:,} more figures are in report.csv</p>')
    counts = [[name.replace("_", " "), *(f"{run.counts.get(name, 0):,}" for run in runs)] for name in COUNTS]
    settings = [["metric", for_html(runs[0].scores.get("metric", ""), MAX_TEXT)]]
    settings += [[for_html(name, MAX_NAME), for_html(value, MAX_TEXT)] for name, value in shared_settings(runs)]
    parts.append(
        "<details><summary>counts and settings</summary>"
        + _table(["count", *names], counts)
        + _table(["setting", "value"], settings, kind="settings")
        + "</details>"
    )
    for run, name in zip(runs, names, strict=True):
        parts += [_notes(run, name), _worst(run, name, share)]
    return parts


def _figure(run: Run, name: str) -> str:
    figure = run.scores["figures"].get(name)
    if figure is None:
        return ""
    return f"{with_interval(figure)} <small>n = {figure['count']:,}</small>{_beside(run, name)}"


def _notes(run: Run, name: str) -> str:
    """Return marks, notes and records without an answer."""
    said = [*run.marks, *run.scores.get("notes", [])]
    said += [f"unanswered: {one['id']}: {one['error']}" for one in run.worst.get("unanswered", [])]
    lines = "".join(f"<li>{name}: <bdi>{for_html(one, MAX_TEXT)}</bdi></li>" for one in said)
    return f"<ul>{lines}</ul>" if lines else ""


def _worst(run: Run, name: str, share: int) -> str:
    """Return the worst samples of a run, in at most `share` bytes."""
    samples = run.worst.get("samples", [])
    if not samples:
        return ""
    text, count = cards(samples, share)
    left_out = len(samples) - count
    more = f'<p class="note">{left_out} left out, the page would become too large</p>' if left_out else ""
    title = f"<h3>Worst samples of {name}</h3>"
    return (
        f'{title}<p class="note">All are in {for_html(run.name, MAX_NAME)}/samples.jsonl.</p>'
        f'<div class="cards">{text}</div>{more}'
    )
