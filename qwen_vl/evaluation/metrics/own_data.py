"""Scores of a conversation file: each record is scored by what its right answer is.

- boxes, if it has a <box>: f1, precision, recall, at_0.3, at_0.5, at_0.7, mean_iou, first_at_0.5, without
- yes_no, if it is yes, no, 是, 否, 有, .. alone: accuracy, f1, precision, recall (of yes), agree, unmatched
- short, up to 10 words: exact_match, anls, relaxed_accuracy, agree
- text, longer or several references: rouge_l, bleu, cider

A field `metric` of a record decides instead: boxes, yes_no, text, exact_match, anls or relaxed_accuracy; the last three
are of the task short. The figures of a task are called TASK_NAME, such as boxes_f1. "score" is the mean of what the
records got: F1 of its boxes, right or wrong, exact match (or what `metric` names), ROUGE-L. A field `category` adds
"category/NAME", the mean of what its records got, and the two plainest figures of its boxes and of its short answers,
"category/NAME first_at_0.5" and "category/NAME agree". Boxes are compared in the grid of 0 to 999, as they are written.
"""

from collections.abc import Sequence

from qwen_vl.evaluation.metrics.boxes_and_words import find_boxes
from qwen_vl.evaluation.metrics.breakdown import means_by, text_of
from qwen_vl.evaluation.metrics.estimates import require_answers
from qwen_vl.evaluation.metrics.free_text import is_long, require_libraries
from qwen_vl.evaluation.metrics.own_tasks import SHORT_RULES, TASKS, is_yes_no, right_of
from qwen_vl.evaluation.metrics.result import Figure, Metric, Pair, Result, SampleScore
from qwen_vl.evaluation.records import Record
from qwen_vl.evaluation.statistics import mean_figure

METRICS = ("boxes", "yes_no", "text", *SHORT_RULES)  # values of the field `metric`


def task_of(record: Record) -> str:
    """Return the task of a record: boxes, yes_no, short or text (see this module's text).

    Raise ValueError if it has no right answer, or its `metric` is unknown.
    """
    named = record.fields.get("metric")
    if named not in (None, *METRICS):
        raise ValueError(f"record {record.id!r}: metric is {named!r}, it must be one of {', '.join(METRICS)}")
    if not record.answers:
        raise ValueError(f"record {record.id!r} has no right answer; end its conversation with the assistant's turn")
    if named:
        return "short" if named in SHORT_RULES else str(named)
    if find_boxes(record.answers[0]):
        return "boxes"
    if len(record.answers) > 1 or is_long(record.answers[0]):
        return "text"
    return "yes_no" if is_yes_no(record.answers[0]) else "short"


def check_records(records: Sequence[Record]) -> None:
    """Raise ValueError with all records that cannot be scored, or if a library is missing, before any is answered."""
    tasks: set[str] = set()
    problems: list[str] = []
    for record in records:
        try:
            tasks.add(task := task_of(record))
            if task == "yes_no":
                right_of(record)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    if "text" in tasks:
        require_libraries()


def score_sample(record: Record, text: str) -> SampleScore:
    """Return the score (0 to 1) of one answer; extra has its `task` and what the figures are made of.

    Raise ValueError as `check_records` does.
    """
    return TASKS[task_of(record)].sample(record, text)


def score_records(records: Sequence[Record], texts: Sequence[str], *, whole: Sequence[Record] | None = None) -> Result:
    """Return the figures and samples of answers, one text a record.

    whole: all records of the file, by default `records`. Raise ValueError as `check_records` does.
    """
    if not records:
        raise ValueError("no answered records to score; answer at least one")
    samples = [score_sample(record, text) for record, text in zip(records, texts, strict=True)]
    clusters = [record.cluster for record in records]
    figures = {"score": mean_figure([sample.score for sample in samples], clusters)}
    notes: list[str] = []
    headlines = []
    for name, task in TASKS.items():
        rows = [row for row, sample in enumerate(samples) if sample.extra["task"] == name]
        if rows:
            asked = [record for record in (records if whole is None else whole) if task_of(record) == name]
            of_task, said = task.figures([records[row] for row in rows], [samples[row] for row in rows], asked)
            figures |= {f"{name}_{part}": figure for part, figure in of_task.items()}
            headlines.append(f"{name}_{task.main}")
            notes += said
    return Result(headlines[0] if len(headlines) == 1 else "score", figures, samples, tuple(notes))


def _score(pairs: Sequence[Pair], whole: Sequence[Record] | None = None) -> Result:
    require_answers(pairs, title="Own data")
    result = score_records([pair.record for pair in pairs], [text_of(pair) for pair in pairs], whole=whole)
    return Result(result.headline, {**result.figures, **_by_category(pairs, result)}, result.samples, result.notes)


def _by_category(pairs: Sequence[Pair], result: Result) -> dict[str, Figure]:
    figures = means_by(pairs, [sample.score for sample in result.samples], "category")
    first = [(i, one.extra["first_at_0.5"]) for i, one in enumerate(result.samples) if "first_at_0.5" in one.extra]
    agree = [(i, one.extra["agree"]) for i, one in enumerate(result.samples) if "agree" in one.extra]
    for name, scores in (("first_at_0.5", first), ("agree", agree)):
        found = means_by([pairs[i] for i, _ in scores], [score for _, score in scores], "category")
        figures |= {f"{category} {name}": figure for category, figure in found.items()}
    return figures


OWN_DATA = Metric("by the right answer of each record", _score, needs_whole=True)
