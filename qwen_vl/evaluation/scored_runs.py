"""Scored runs of a results folder, as reports show them: figures beside published numbers, and what must be marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen_vl.evaluation import results
from qwen_vl.evaluation.benchmarks import BENCHMARKS
from qwen_vl.evaluation.benchmarks.benchmark import size_mark
from qwen_vl.evaluation.scoring import AS_PUBLISHED, OFFICIAL
from qwen_vl.evaluation.worst import WORST

BASE, CHAT = "Qwen-VL", "Qwen-VL-Chat"  # whose numbers were published
OF_A_SUBSET = ("limit", "offset", "seed")  # what parts of a run's name begin with that no mark must repeat
NAMES = ("benchmark", "title")  # settings that a heading says
DECIMALS = {"percent": 2, "points": 2, "count": 0, "share": 4}
SUBSET_WARNING = "Some numbers are of a random subset (--limit) and marked so: they do not compare with published ones."
COUNTS = ("records", "answered", "unanswered", "unmatched", "without_box", "unreadable_images")


@dataclass(frozen=True)
class Run:
    """One scored run: `scores` as in scores.json, `model` as in model.json, `worst` as in worst.json, or empty."""

    folder: Path
    scores: dict[str, Any]
    model: dict[str, Any]
    worst: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of its folder: the benchmark, and what differs from the benchmark's defaults."""
        return self.folder.name

    @property
    def model_folder(self) -> str:
        """Return the name of the model's folder, which no other model has."""
        return self.folder.parent.name

    @property
    def headline(self) -> dict[str, Any] | None:
        """Return the figure for the table; None for a test split, which has none."""
        return self.scores["figures"].get(self.scores["headline"])

    @property
    def kind(self) -> str:
        """Return the name of the published model that this one is compared with, by what it is: base or chat."""
        return CHAT if self.model.get("is_chat") else BASE

    def published(self, figure: str) -> float | None:
        """Return the published number of a figure for the model's kind, None if there is none."""
        numbers = self.scores.get("published_figures", {}).get(figure)
        headline = self.scores["headline"]
        if numbers is None and figure and figure in (headline, AS_PUBLISHED.format(headline)):
            numbers = self.scores.get("published")
        if numbers is None and AS_PUBLISHED.format(figure) == headline:  # the official twin of that headline
            numbers = self.scores.get("published")
        return (numbers or {}).get(self.kind)

    def difference(self, figure: str) -> float | None:
        """Return how much higher a figure is than the published one, None if there is none."""
        published = self.published(figure)
        return None if published is None else self.scores["figures"][figure]["value"] - published

    @property
    def counts(self) -> dict[str, int]:
        """Return the counts of records, by the names in COUNTS."""
        return {**self.scores["counts"], "without_box": self.worst.get("without_box", 0)}

    @cached_property
    def changes(self) -> list[str]:
        """Return what differs from the benchmark's own settings, such as chat, 4shot, max20."""
        parts = self.name.removeprefix(self.scores["benchmark"]).split("+")
        return [part for part in parts if part and not part.startswith(OF_A_SUBSET)]

    @property
    def marks(self) -> list[str]:
        """Return what a reader of the number must know."""
        settings, counts, marks = self.scores["settings"], self.scores["counts"], []
        if self.scores["subset"]:
            size = settings.get("complete_size")
            of_all = f" of {size:,}" if size else ""
            marks.append(f"subset: {counts['records']:,}{of_all} records, seed {settings.get('seed', 0)}")
        if mark := size_mark(settings.get("complete_size"), self.scores.get("size")):
            marks.append(mark)
        if self.scores["incomplete"]:
            marks.append(f"incomplete: {counts['unanswered']:,} of {counts['records']:,} unanswered")
        if self.changes:
            marks.append(f"changed: {', '.join(self.changes)}")
        if settings.get("variant", OFFICIAL) != OFFICIAL:
            marks.append(f"variant: {settings['variant']}")
        if settings.get("judge"):
            marks.append(f"judge: {settings['judge']}")
        return marks


def read_runs(results_dir: Path) -> list[Run]:
    """Return all scored runs below a results folder, in the order of the registry, then of the models.

    Raise ValueError if there is none, or a file of one is broken.
    """
    runs = [read_run(file.parent) for file in sorted(results_dir.glob(f"*/*/{results.SCORES}"))]
    if not runs:
        raise ValueError(f"{results_dir}: no scores to report; run the stage score first, or correct --output_dir")
    places = {name: place for place, name in enumerate(BENCHMARKS)}
    return sorted(runs, key=lambda run: (places.get(run.scores["benchmark"], len(places)), run.name, run.model_folder))


def read_run(folder: Path) -> Run:
    """Return the scored run in a folder; raise ValueError if a file of it is missing or broken."""
    model, worst = folder.parent / results.MODEL, folder / WORST
    for file in (model, folder / results.SCORES):
        if not file.is_file():
            raise ValueError(f"{file}: is missing; score again, or move {folder} away")
    scores = results.read_json(folder / results.SCORES)
    if not {"benchmark", "headline", "figures", "counts", "settings", "subset", "incomplete"} <= scores.keys():
        raise ValueError(f"{folder / results.SCORES}: no scores of an evaluation; run the stage score again")
    return Run(folder, scores, results.read_json(model), results.read_json(worst) if worst.is_file() else {})


def columns(runs: Sequence[Run]) -> dict[str, str]:
    """Return {model folder: what its column is called}: the model's label, and the folder where labels are equal."""
    labels = {run.model_folder: str(run.model.get("label") or run.model_folder) for run in runs}
    several = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return {
        folder: f"{label} ({folder})" if label in several else label
        for folder, label in sorted(labels.items(), key=lambda entry: (entry[1], entry[0]))
    }


def rows(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    """Return {name of a run: {model folder: run}}, in the order of `runs`."""
    found: dict[str, dict[str, Run]] = {}
    for run in runs:
        found.setdefault(run.name, {})[run.model_folder] = run
    return found


def number(value: float, unit: str, *, signed: bool = False) -> str:
    """Return a number as text, with the digits that its unit deserves."""
    return f"{value:{'+' if signed else ''},.{DECIMALS.get(unit, 2)}f}"


def with_interval(figure: dict[str, Any]) -> str:
    """Return a figure as text: value ± half of its 95% interval, where it has one."""
    text = number(figure["value"], figure["unit"])
    if figure["low"] is None:
        return text
    return f"{text} \u00b1 {number((figure['high'] - figure['low']) / 2, figure['unit'])}"


def shared_settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (name, value) of all settings of the same run of several models; values that differ name their model."""
    names = dict.fromkeys(name for run in runs for name in run.scores["settings"] if name not in NAMES)
    lines = []
    for name in names:
        values = [setting(run.scores["settings"].get(name)) for run in runs]
        if len(set(values)) == 1:
            lines.append((name, values[0]))
        else:
            lines += [(f"{name} ({run.model_folder})", value) for run, value in zip(runs, values, strict=True)]
    return [(name, value) for name, value in lines if value]


def setting(value: object) -> str:
    """Return a value of settings.json as text; "" for none."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {setting(inner) or 'none'}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value))
    return "" if value is None else str(value)
