"""Two scored runs on the same records: the paired difference, better and worse records, and how answers changed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum, isclose
from pathlib import Path
from typing import Any

from qwen_vl.evaluation import results
from qwen_vl.evaluation.scored_runs import Run, read_run, setting
from qwen_vl.evaluation.statistics import mcnemar_exact, paired_difference
from qwen_vl.evaluation.worst import read_samples

MATTERING = ("template", "style", "decoding", "num_shots", "variant", "judge")  # settings that runs must share
DATA = ("question", "answers", "options")  # what a record is, besides its id
MAX_IDS = 5  # that an error names
MEAN_SCORE = "mean score of the records"  # what is compared where no figure is that


@dataclass(frozen=True)
class Change:
    """A record whose answer or score is another one."""

    id: str
    question: str
    before: str | None
    after: str | None
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Comparison:
    """How run B differs from run A of the same benchmark; `value` of A and B and the difference are in `unit`."""

    run: str
    title: str
    compared: str  # name of the figure, or MEAN_SCORE
    unit: str
    value_a: float
    value_b: float
    difference: float
    standard_error: float | None
    low: float | None
    high: float | None
    num_records: int
    num_better: int
    num_worse: int
    num_same: int
    p_value: float | None  # of McNemar's exact test, where every score is right or wrong
    changes: tuple[Change, ...]  # those that got worse first, then the better ones, then other answers
    notes: tuple[str, ...] = ()
    is_subset: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return asdict(self)


def compare(a: Path, b: Path, *, anyway: bool = False) -> tuple[list[Comparison], list[str]]:
    """Compare the runs that two model folders of a results folder have in common, or two folders of runs.

    anyway: compare runs whose prompt, decoding or way of scoring differ, and say so in their notes. Return the
    comparisons, and notes about runs that only one side has.
    Raise ValueError, with everything that is wrong, if folders are of no evaluation, have no run in common, or two runs
    are not of the same records.
    """
    pairs, notes = _pairs(a, b)
    found, problems = [], []
    for folder_a, folder_b in pairs:
        try:
            found.append(compare_runs(read_run(folder_a), read_run(folder_b), anyway=anyway))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return found, notes


def compare_runs(a: Run, b: Run, *, anyway: bool = False) -> Comparison:
    """Return how run B differs from run A. Raise ValueError as `compare` does."""
    _check_benchmark(a, b)
    samples_a, samples_b = _samples(a), _samples(b)
    _check_records(a, b, samples_a, samples_b)
    differing = _differing_settings(a, b)
    if differing and not anyway:
        raise ValueError(
            f"{a.name}: the two runs were made with other settings ({'; '.join(differing)}), so their difference is "
            "not that of the models; evaluate both alike, or add --anyway"
        )
    both = [(one, samples_b[id]) for id, one in samples_a.items()]
    pairs = [(one, other) for one, other in both if None not in (one["score"], other["score"])]
    if not pairs:
        raise ValueError(f"{a.name}: no record has an answer in both {a.folder} and {b.folder}; answer them first")
    notes = [f"other settings: {text}" for text in differing]
    if len(pairs) < len(both):
        notes.append(f"{len(both) - len(pairs)} of {len(both)} records lack an answer in one run and are left out")
    compared = _compared(a, b, _answered(samples_a), _answered(samples_b))
    return _comparison(a, b, pairs, compared, notes)


def _answered(samples: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Return the scores that the figures of a run are made of."""
    return [float(one["score"]) for one in samples.values() if one["score"] is not None]


def _comparison(
    a: Run,
    b: Run,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    compared: tuple[str, str, float],
    notes: list[str],
) -> Comparison:
    """Return the comparison of pairs of samples. compared: name, unit and factor of what `_compared` found."""
    scores_a, scores_b = ([float(pair[side]["score"]) for pair in pairs] for side in (0, 1))
    name, unit, factor = compared
    if not a.scores["headline"]:
        notes = [*notes, "a test split: without right answers only the answers can be compared"]
    elif name == MEAN_SCORE:
        notes = [*notes, f"{a.scores['headline']} is no mean over records, so the {MEAN_SCORE} is compared"]
    elif name != a.scores["headline"]:
        notes = [*notes, f"{a.scores['headline']} is no mean over records, so {name} is compared"]
    scaled_a, scaled_b = ([factor * score for score in scores] for scores in (scores_a, scores_b))
    difference = paired_difference(scaled_a, scaled_b, [one["cluster"] for one, _ in pairs])
    better = sum(right > left for left, right in zip(scores_a, scores_b, strict=True))
    worse = sum(right < left for left, right in zip(scores_a, scores_b, strict=True))
    is_verdict = bool(a.scores["headline"]) and set(scores_a) | set(scores_b) <= {0.0, 1.0}
    return Comparison(
        run=a.name if a.name == b.name else f"{a.name} / {b.name}",
        title=str(a.scores.get("title") or a.name),
        compared=name,
        unit=unit,
        value_a=fsum(scaled_a) / len(pairs),
        value_b=fsum(scaled_b) / len(pairs),
        difference=difference.value,
        standard_error=difference.standard_error,
        low=difference.low,
        high=difference.high,
        num_records=len(pairs),
        num_better=better,
        num_worse=worse,
        num_same=len(pairs) - better - worse,
        p_value=mcnemar_exact(worse, better) if is_verdict else None,
        changes=_changes(pairs),
        notes=tuple(notes),
        is_subset=bool(a.scores["subset"] or b.scores["subset"]),
    )


def _changes(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[Change, ...]:
    found = [
        Change(one["id"], str(one["question"]), one["answer"], other["answer"], one["score"], other["score"])
        for one, other in pairs
        if (one["answer"], one["score"]) != (other["answer"], other["score"])
    ]

    def rank(change: Change) -> int:
        return 0 if change.score_after < change.score_before else 1 if change.score_after > change.score_before else 2

    return tuple(sorted(found, key=rank))


def _compared(a: Run, b: Run, scores_a: Sequence[float], scores_b: Sequence[float]) -> tuple[str, str, float]:
    """Return (name, unit, factor): which figure the mean score of the records is, and how it is scaled.

    It is the headline if that is the mean of the records' scores; else another figure that is; else MEAN_SCORE.
    """
    figures_a, figures_b = a.scores["figures"], b.scores["figures"]
    names = [a.scores["headline"], *figures_a]
    for name in dict.fromkeys(name for name in names if name in figures_a and name in figures_b):
        for factor in (100.0, 1.0):
            if _is_mean(figures_a[name], scores_a, factor) and _is_mean(figures_b[name], scores_b, factor):
                return name, figures_a[name]["unit"], factor
    are_shares = all(0 <= score <= 1 for score in (*scores_a, *scores_b))
    return (MEAN_SCORE, "percent", 100.0) if are_shares else (MEAN_SCORE, "points", 1.0)


def _is_mean(figure: Mapping[str, Any], scores: Sequence[float], factor: float) -> bool:
    mean = factor * fsum(scores) / len(scores)
    return bool(isclose(figure["value"], mean, rel_tol=1e-9, abs_tol=1e-9))


def _pairs(a: Path, b: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Return the folders of the runs to compare, and notes."""
    kinds = [_kind(path) for path in (a, b)]
    if kinds == ["run", "run"]:
        return [(a, b)], []
    if kinds != ["model", "model"]:
        raise ValueError(f"{a} is the folder of a {kinds[0]}, {b} of a {kinds[1]}; give two models, or two runs")
    runs_a, runs_b = _runs(a), _runs(b)
    common = [name for name in runs_a if name in runs_b]
    if not common:
        there = "; ".join(f"{path} has {', '.join(runs) or 'none'}" for path, runs in ((a, runs_a), (b, runs_b)))
        raise ValueError(
            f"no scored run in common: {there}; evaluate and score both alike, or name two folders of runs"
        )
    notes = [
        f"only in {path}: {', '.join(sorted(set(mine) - set(other)))}"
        for path, mine, other in ((a, runs_a, runs_b), (b, runs_b, runs_a))
        if set(mine) - set(other)
    ]
    return [(a / name, b / name) for name in common], notes


def _kind(path: Path) -> str:
    """Return "model" or "run"; raise ValueError for a folder that is neither."""
    if (path / results.SCORES).is_file():
        return "run"
    if (path / results.MODEL).is_file():
        return "model"
    models = sorted(str(file.parent) for file in path.glob(f"*/{results.MODEL}"))
    if (path / results.SETTINGS).is_file():
        raise ValueError(f"{path}: has no scores yet; run the stage score")
    hint = f", such as {', '.join(models[:MAX_IDS])}" if models else ""
    raise ValueError(f"{path}: is no folder of a model or of a run in a results folder; give one{hint}")


def _runs(model: Path) -> list[str]:
    """Return the names of the scored runs of a model that have samples; the mean of others has none."""
    return sorted(file.parent.name for file in model.glob(f"*/{results.SCORES}") if _has_samples(file.parent))


def _has_samples(folder: Path) -> bool:
    return (folder / results.SAMPLES).is_file()


def _samples(run: Run) -> dict[str, dict[str, Any]]:
    """Return {id: what is compared of a sample} of a run."""
    parts = run.scores["settings"].get("parts")
    if parts and not _has_samples(run.folder):
        raise ValueError(f"{run.folder}: is a mean; compare {' and '.join(parts)}")
    kept = ("id", "score", "answer", "cluster", *DATA)
    return {one["id"]: {name: one.get(name) for name in kept} for one in read_samples(run.folder)}


def _check_benchmark(a: Run, b: Run) -> None:
    names = [run.scores["benchmark"] for run in (a, b)]
    if names[0] != names[1]:
        raise ValueError(f"{a.folder} is of {names[0]}, {b.folder} of {names[1]}; compare runs of one benchmark")


def _check_records(a: Run, b: Run, samples_a: Mapping[str, Any], samples_b: Mapping[str, Any]) -> None:
    """Raise ValueError if two runs are not of the same records."""
    problems = []
    for name, mine, other in (("A", samples_a, samples_b), ("B", samples_b, samples_a)):
        alone = [id for id in mine if id not in other]
        if alone:
            problems.append(f"{len(alone)} of {len(mine)} records are only in {name} ({_ids(alone)})")
    common = [id for id in samples_a if id in samples_b]
    changed = [id for id in common if any(samples_a[id][name] != samples_b[id][name] for name in DATA)]
    if changed:
        problems.append(f"{len(changed)} records have another question, options or right answers ({_ids(changed)})")
    if problems:
        raise ValueError(
            f"{a.name}: the runs A {a.folder} and B {b.folder} are not of the same records: {'; '.join(problems)}; "
            "evaluate both with the same data, --limit, --offset and --seed"
        )


def _ids(ids: Sequence[str]) -> str:
    return ", ".join(ids[:MAX_IDS]) + (", .." if len(ids) > MAX_IDS else "")


def _differing_settings(a: Run, b: Run) -> list[str]:
    """Return the settings that differ, as text; the seed counts where it draws solved examples."""
    one, other = a.scores["settings"], b.scores["settings"]
    names = [*MATTERING, *(["seed"] if one.get("num_shots") else [])]
    return [
        f"{name}: {setting(one.get(name)) or 'none'} in A, {setting(other.get(name)) or 'none'} in B"
        for name in names
        if one.get(name) != other.get(name)
    ]
