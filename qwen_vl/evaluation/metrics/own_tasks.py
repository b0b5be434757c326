"""The four tasks of a conversation file: how one answer is scored, and which figures a set of answers has."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_vl.evaluation.metrics.anls import anls
from qwen_vl.evaluation.metrics.box_matching import THRESHOLD, match_boxes
from qwen_vl.evaluation.metrics.boxes_and_words import find_boxes, iou, share_that_agree
from qwen_vl.evaluation.metrics.estimates import ratio, yes_figures
from qwen_vl.evaluation.metrics.free_text import rouge_l, score_texts
from qwen_vl.evaluation.metrics.result import Figure, SampleScore
from qwen_vl.evaluation.metrics.text import exact_match, relaxed_accuracy
from qwen_vl.evaluation.metrics.yes_no import whole_word_answer
from qwen_vl.evaluation.records import Record
from qwen_vl.evaluation.statistics import mean_figure

SHARES = (0.3, 0.5, 0.7)
SHORT_RULES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
}
YES, NO = ("yes", "是", "是的", "有", "对"), ("no", "否", "不是", "没有", "没", "不", "不对")
BEGINNING = re.compile(r"\W*(?:(yes\b|是|有|对)|(no\b|否|没|不(?!知道|清楚|确定)))", re.IGNORECASE)

Figures = tuple[dict[str, Figure], list[str]]  # figures without the task's name, notes


@dataclass(frozen=True)
class Task:
    """A kind of right answer. `main` is the figure that speaks for the others.

    `figures` gets records, their samples and all records of the task in the file, answered or not.
    """

    main: str
    sample: Callable[[Record, str], SampleScore]
    figures: Callable[[Sequence[Record], Sequence[SampleScore], Sequence[Record]], Figures]


def short_agree(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if a prediction says an accepted answer, else 0: width of signs, case and a final period apart."""
    return max(share_that_agree([prediction], [answer]) for answer in answers)


def yes_or_no(text: str) -> str:
    """Return "yes", "no" or "unknown": what an answer begins with (Chinese, too), else its only yes or no."""
    match = BEGINNING.match(text)
    if match:
        return "yes" if match[1] else "no"
    return whole_word_answer(text)


def is_yes_no(answer: str) -> bool:
    """Return whether an answer is nothing but yes or no, in English or Chinese."""
    return unicodedata.normalize("NFKC", answer).strip().rstrip(".。").casefold() in YES + NO


def _clusters(records: Sequence[Record]) -> list[str]:
    return [record.cluster for record in records]


def _boxes_sample(record: Record, text: str) -> SampleScore:
    right, said = find_boxes(record.answers[0]), find_boxes(text)
    ious = match_boxes(said, right)
    hits = sum(value >= THRESHOLD for value in ious)
    score = 2 * hits / (len(right) + len(said)) if right or said else 1.0  # nothing to find, and nothing found
    extra: dict[str, Any] = {
        "task": "boxes",
        "ious": ious,
        "boxes_in_grid": {"right": [list(box) for box in right], "predicted": [list(box) for box in said]},  # 0..999
    }
    if right:
        extra["first_at_0.5"] = float(bool(said) and iou(said[0], right[0]) >= THRESHOLD)
    return SampleScore(record.id, score, text, unmatched=bool(right) and not said, extra=extra)


def _boxes_figures(records: Sequence[Record], samples: Sequence[SampleScore], _: Sequence[Record]) -> Figures:
    """Return the figures of boxes. Shares and the mean IoU are over right boxes, so at_0.5 is the recall."""
    clusters = _clusters(records)
    ious = [sample.extra["ious"] for sample in samples]
    right = [float(len(values)) for values in ious]
    said = [float(len(sample.extra["boxes_in_grid"]["predicted"])) for sample in samples]
    hits = {share: [float(sum(value >= share for value in values)) for values in ious] for share in SHARES}
    both = [one + other for one, other in zip(right, said, strict=True)]
    figures = {
        "f1": ratio([2 * value for value in hits[THRESHOLD]], both, clusters).figure(),
        "precision": ratio(hits[THRESHOLD], said, clusters).figure(),
        "recall": ratio(hits[THRESHOLD], right, clusters).figure(),
        **{f"at_{share}": ratio(hits[share], right, clusters).figure() for share in SHARES},
        "mean_iou": ratio([sum(values) for values in ious], right, clusters).figure(),
    }
    rows = [row for row, count in enumerate(right) if count]
    if rows:
        first = [samples[row].extra["first_at_0.5"] for row in rows]
        figures["first_at_0.5"] = mean_figure(first, [clusters[row] for row in rows])
    figures["without"] = mean_figure([float(sample.unmatched) for sample in samples], clusters)
    return figures, ["boxes: matched one to one, the highest IoU first; compared in the 0 to 999 grid as written"]


def right_of(record: Record) -> str:
    """Return yes or no, the right answer of a record of that task; raise ValueError if it is neither."""
    truth = yes_or_no(record.answers[0])
    if truth == "unknown":
        raise ValueError(f"record {record.id!r}: metric is yes_no, but its answer {record.answers[0]!r} is neither")
    return truth


def _yes_no_sample(record: Record, text: str) -> SampleScore:
    truth, said = right_of(record), yes_or_no(text)
    extra = {"task": "yes_no", "right": truth, "agree": short_agree(text, record.answers)}
    return SampleScore(record.id, float(said == truth), said, unmatched=said == "unknown", extra=extra)


def _yes_no_figures(records: Sequence[Record], samples: Sequence[SampleScore], _: Sequence[Record]) -> Figures:
    clusters = _clusters(records)
    said = [sample.scored == "yes" for sample in samples]
    right = [sample.extra["right"] == "yes" for sample in samples]
    figures = {"accuracy": mean_figure([sample.score for sample in samples], clusters)}
    figures |= {name: part.figure() for name, part in yes_figures(said, right, clusters).items()}
    figures["agree"] = mean_figure([sample.extra["agree"] for sample in samples], clusters)
    figures["unmatched"] = mean_figure([float(sample.unmatched) for sample in samples], clusters)
    return figures, []


def _short_sample(record: Record, text: str) -> SampleScore:
    named = record.fields.get("metric") or "exact_match"
    scores = {name: rule(text, record.answers) for name, rule in SHORT_RULES.items()}
    extra = {"task": "short", **scores, "agree": short_agree(text, record.answers)}
    return SampleScore(record.id, scores[named], text.strip(), extra=extra)


def _short_figures(records: Sequence[Record], samples: Sequence[SampleScore], _: Sequence[Record]) -> Figures:
    names, clusters = [*SHORT_RULES, "agree"], _clusters(records)
    return {name: mean_figure([sample.extra[name] for sample in samples], clusters) for name in names}, []


def _text_sample(record: Record, text: str) -> SampleScore:
    extra = {"task": "text", "references": list(record.answers)}
    return SampleScore(record.id, rouge_l(text, record.answers), text.strip(), extra=extra)


def _text_figures(records: Sequence[Record], samples: Sequence[SampleScore], whole: Sequence[Record]) -> Figures:
    clusters = _clusters(records)
    corpus = None if len(whole) == len(records) else [record.answers for record in whole]
    scores = score_texts([sample.scored for sample in samples], [record.answers for record in records], corpus=corpus)
    figures = {
        "rouge_l": mean_figure([sample.score for sample in samples], clusters),
        "bleu": Figure(scores.bleu, len(samples), unit="points"),
        "cider": mean_figure(scores.ciders, clusters, unit="points"),
    }
    return figures, [
        f"text_bleu: sacrebleu {scores.signature}; text_rouge_l: F1 of the same tokens, best reference",
        f"text_cider: its idf comes from all {len(whole)} long answers of the file, also for a subset",
    ]


TASKS = {
    "boxes": Task("f1", _boxes_sample, _boxes_figures),
    "yes_no": Task("accuracy", _yes_no_sample, _yes_no_figures),
    "short": Task("exact_match", _short_sample, _short_figures),
    "text": Task("rouge_l", _text_sample, _text_figures),
}
