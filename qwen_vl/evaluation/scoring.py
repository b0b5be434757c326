"""The stage `score`: from the answers on disk to samples.jsonl, scores.json and submission files. It needs no model."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_vl.evaluation import results, store, worst
from qwen_vl.evaluation.benchmarks.benchmark import Benchmark
from qwen_vl.evaluation.keys import records_digest
from qwen_vl.evaluation.metrics.result import Ask, Figure, Pair, Result, SampleScore
from qwen_vl.evaluation.records import Answer
from qwen_vl.evaluation.statistics import interval
from qwen_vl.evaluation.tasks import Task
from qwen_vl.files import whole_file

OFFICIAL, PUBLISHED = "official", "published"
VARIANTS = (OFFICIAL, PUBLISHED)
AS_PUBLISHED = "{} as published"  # name of the figure of the other variant


def score(
    task: Task,
    folder: Path,
    *,
    variant: str = OFFICIAL,
    ask: Ask | None = None,
    judge: str | None = None,
    num_worst: int = worst.NUM_WORST,
) -> dict[str, Any]:
    """Score the answers in the folder of a run; write samples.jsonl, scores.json and, if complete, submission files.

    ask: passes messages to a judge, for a metric that needs one; judge: its name, for the report. num_worst: samples
    that reports show. Return the content of scores.json.
    Raise ValueError if the answers are not of these records, and OSError if the judge refuses.
    """
    settings = results.read_json(folder / results.SETTINGS)
    if settings["records_digest"] != records_digest(task.records):
        raise ValueError(
            f"{folder / results.SETTINGS}: the data files of {task.benchmark.name} have changed since they were "
            "answered; give the same --data_dir, or run the stage answer again, which asks only what is new"
        )
    by_id = {record.id: record for record in task.records}
    answers = store.read(folder, by_id.__contains__)
    given = {id: answer for id, answer in answers.items() if answer.error is None}
    pairs = [Pair(record, given[record.id]) for record in task.records if record.id in given]
    if not pairs:
        errors = [answer.error for answer in answers.values() if answer.error]
        first = f" ({errors[0]})" if errors else "; run the stage answer"
        raise ValueError(f"{folder}: none of {len(by_id)} records has an answer{first}")
    result = _with_variant(_result(task, pairs, ask), variant)
    _write_samples(folder / results.SAMPLES, pairs, result, answers, by_id)
    worst.keep(folder, task.records, has_scores=bool(result.headline), num_worst=num_worst)
    is_complete = len(pairs) == len(by_id) and task.subset.is_all
    notes = list(result.notes)
    if task.benchmark.submission is not None and is_complete:
        task.benchmark.submission(folder, pairs)
    elif task.benchmark.submission is not None:
        notes.append("no submission file: not every record of the benchmark has an answer")
    content = scores_of(
        task.benchmark,
        replace(result, notes=tuple(notes)),
        run=folder.name,
        model=results.read_json(folder.parent / results.MODEL)["label"],
        counts=_counts(len(by_id), result, answers),
        is_subset=not task.subset.is_all,
        settings={**settings, "variant": variant, "judge": judge if task.benchmark.metric.needs_judge else None},
    )
    results.write_json(folder / results.SCORES, content)
    return content


def _counts(num_records: int, result: Result, answers: Mapping[str, Answer]) -> dict[str, int]:
    """Return the counts of a run; its samples are the records that are answered."""
    return {
        "records": num_records,
        "answered": len(result.samples),
        "unanswered": num_records - len(result.samples),
        "unmatched": sum(sample.unmatched for sample in result.samples),
        "unreadable_images": sum(answer.error is not None for answer in answers.values()),
    }


def _result(task: Task, pairs: Sequence[Pair], ask: Ask | None) -> Result:
    """Return what the metric says; for a test split, whose right answers are not in its files, no figure at all."""
    metric = task.benchmark.metric
    if not task.benchmark.has_answers:
        samples = [SampleScore(pair.record.id, 0.0, pair.answer.text or "") for pair in pairs]
        return Result("", {}, samples, ("a test split: its right answers are not public; send the submission file",))
    if metric.needs_whole:
        return metric.score(pairs, task.whole)
    return metric.score(pairs, ask) if metric.needs_judge else metric.score(pairs)


def scores_of(
    benchmark: Benchmark,
    result: Result,
    *,
    run: str,
    model: str,
    counts: Mapping[str, int],
    is_subset: bool,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of scores.json."""
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "run": run,
        "size": benchmark.size,
        "model": model,
        "headline": result.headline,
        "figures": {name: figure_to_dict(figure) for name, figure in result.figures.items()},
        "notes": list(result.notes),
        "counts": dict(counts),
        "incomplete": counts["unanswered"] > 0,
        "subset": is_subset,
        "settings": dict(settings),
        "published": dict(benchmark.published_with_shots.get(benchmark.num_shots, benchmark.published)),
        "published_figures": {name: dict(numbers) for name, numbers in benchmark.published_figures.items()},
        "published_note": benchmark.published_note,
        "metric": benchmark.metric.name,
    }


def figure_to_dict(figure: Figure) -> dict[str, Any]:
    """Return a figure as JSON, with the ends of its 95% interval."""
    low, high = interval(figure) or (None, None)
    return {
        "value": figure.value,
        "count": figure.count,
        "standard_error": figure.standard_error,
        "low": low,
        "high": high,
        "unit": figure.unit,
    }


def score_mean(benchmark: Benchmark, folder: Path, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write the scores.json of a mean of benchmarks, from those of its parts, and return its content.

    The parts have different records, so the error of their mean is that of independent numbers.
    """
    headlines = [part["figures"][part["headline"]] for part in parts]
    errors = [figure["standard_error"] for figure in headlines]
    error = None if None in errors else math.sqrt(math.fsum(e * e for e in errors)) / len(errors)
    value = math.fsum(figure["value"] for figure in headlines) / len(headlines)
    count = sum(figure["count"] for figure in headlines)
    name = parts[0]["headline"]
    figures = {name: Figure(value, count, error, headlines[0]["unit"])}
    for part, figure in zip(parts, headlines, strict=True):
        figures[f"part/{part['benchmark']}"] = Figure(
            figure["value"], figure["count"], figure["standard_error"], figure["unit"]
        )
    counts = {key: sum(part["counts"][key] for part in parts) for key in parts[0]["counts"]}
    notes = (f"mean of {', '.join(part['benchmark'] for part in parts)}",)
    size = sum(part["settings"]["complete_size"] for part in parts)
    shared = {"benchmark": benchmark.name, "title": benchmark.title, "parts": [part["benchmark"] for part in parts]}
    content = scores_of(
        benchmark,
        Result(name, figures, [], notes),
        run=folder.name,
        model=parts[0]["model"],
        counts=counts,
        is_subset=any(part["subset"] for part in parts),
        settings={**parts[0]["settings"], **shared, "num_records": counts["records"], "complete_size": size},
    )
    sizes = [part.get("size") for part in parts]
    content["size"] = None if None in sizes else sum(sizes)
    folder.mkdir(exist_ok=True)
    results.write_json(folder / results.SCORES, content)
    return content


def _with_variant(result: Result, variant: str) -> Result:
    """Return the result with the figure of the variant as its headline, if the metric has it."""
    name = AS_PUBLISHED.format(result.headline)
    if variant == OFFICIAL or name not in result.figures:
        return result
    return replace(result, headline=name)


def _write_samples(
    path: Path, pairs: Sequence[Pair], result: Result, answers: Mapping[str, Answer], records: Mapping[str, Any]
) -> None:
    """Write a line for each record, in their order; one without an answer has a null score."""
    scores = {sample.id: sample for sample in result.samples}
    given = {pair.record.id for pair in pairs}
    with whole_file(path) as file:
        for id, record in records.items():
            answer = answers.get(id)
            sample = scores.get(id) if id in given else None
            extra = dict(sample.extra) if sample else {}
            if answer is not None and answer.error:
                extra["error"] = answer.error
            if answer is not None and answer.losses is not None:
                extra.setdefault("losses", list(answer.losses))
            said = None if answer is None else answer.text
            if answer is not None and answer.choice is not None:
                said = chr(ord("A") + answer.choice)
            line = {
                "id": id,
                "images": [image.name for image in record.images],
                "question": record.question,
                "answers": list(record.answers),
                "options": list(record.options),
                "answer": said,
                "scored": sample.scored if sample else None,
                "score": sample.score if sample and result.headline else None,
                "tokens": answer.num_tokens if answer else 0,
                "finish": answer.finish if answer else None,
                "unmatched": sample.unmatched if sample else False,
                "boxes": extra.pop("boxes", None),
                "cluster": record.cluster,
                "extra": extra,
            }
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8"))
