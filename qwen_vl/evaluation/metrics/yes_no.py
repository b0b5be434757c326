"""Yes/no questions about hallucinations: POPE and HallusionBench.

A record's `answers` has yes or no (HallusionBench: 1 or 0, too). Fields of POPE: `split` (random, popular or
adversarial). Fields of HallusionBench: `category`, `subcategory`, `set_id`, `figure_id`, `question_id`.
"""

import re
from collections.abc import Sequence

from qwen_vl.evaluation.metrics.breakdown import text_of
from qwen_vl.evaluation.metrics.estimates import Estimate, require_answers, weighted_sum, yes_figures
from qwen_vl.evaluation.metrics.result import Figure, Metric, Pair, Result, SampleScore
from qwen_vl.evaluation.records import Record
from qwen_vl.evaluation.statistics import mean_figure

POPE_SPLITS = ("random", "popular", "adversarial")
TRUTHS = {"yes": "yes", "no": "no", "1": "yes", "0": "no"}
WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def pope_answer(text: str) -> str:
    """Return "yes" or "no": no if the first sentence has the word No, no or not, else yes (POPE's own rule)."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def whole_word_answer(text: str) -> str:
    """Return "yes" or "no" if exactly one of them stands in the text as a whole word, else "unknown"."""
    found = {word.lower() for word in WORD.findall(text)}
    return found.pop() if len(found) == 1 else "unknown"


def _truth(record: Record) -> str:
    label = record.answers[0].strip().lower()
    if label not in TRUTHS:
        raise ValueError(f"record {record.id!r}: its answer is {record.answers[0]!r}, it must be yes or no")
    return TRUTHS[label]


def _score_pope(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="POPE")
    said = [pope_answer(text_of(pair)) for pair in pairs]
    truths = [_truth(pair.record) for pair in pairs]
    right = [float(one == other) for one, other in zip(said, truths, strict=True)]
    splits = [str(pair.record.fields.get("split", "all")) for pair in pairs]
    order = sorted(set(splits), key=lambda split: (*POPE_SPLITS, split).index(split))
    parts: dict[str, Figure] = {}
    scores: list[Estimate] = []
    for split in order:
        rows = [row for row, found in enumerate(splits) if found == split]
        clusters = [pairs[row].record.cluster for row in rows]
        is_yes = [said[row] == "yes" for row in rows]
        found = yes_figures(is_yes, [truths[row] == "yes" for row in rows], clusters)
        scores.append(found["f1"])
        parts[f"{split}/accuracy"] = mean_figure([right[row] for row in rows], clusters)
        parts |= {f"{split}/{name}": part.figure() for name, part in found.items()}
        parts[f"{split}/answers yes"] = mean_figure([float(verdict) for verdict in is_yes], clusters)
    figures = {"mean F1": weighted_sum((1 / len(scores), part) for part in scores).figure(), **parts}
    samples = [
        SampleScore(pair.record.id, score, answer) for pair, score, answer in zip(pairs, right, said, strict=True)
    ]
    notes = () if set(order) == set(POPE_SPLITS) else (f"mean F1 is of: {', '.join(order)}",)
    return Result("mean F1", figures, samples, notes)


def _score_hallusion(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="HallusionBench")
    said = [whole_word_answer(text_of(pair)) for pair in pairs]
    right = [one == _truth(pair.record) for one, pair in zip(said, pairs, strict=True)]
    clusters = [pair.record.cluster for pair in pairs]
    figures = {"aAcc": mean_figure([float(verdict) for verdict in right], clusters)}
    figures["fAcc"] = _all_right(pairs, right, "figure_id")
    figures["qAcc"] = _all_right(pairs, right, "question_id")
    figures["unmatched"] = mean_figure([float(one == "unknown") for one in said], clusters)
    samples = [
        SampleScore(pair.record.id, float(verdict), one, unmatched=one == "unknown")
        for pair, verdict, one in zip(pairs, right, said, strict=True)
    ]
    return Result("aAcc", figures, samples)


def _all_right(pairs: Sequence[Pair], right: Sequence[bool], last: str) -> Figure:
    """Return the share of (category, subcategory, set, `last`) of which all records are right."""
    groups: dict[tuple[str, ...], bool] = {}
    for pair, verdict in zip(pairs, right, strict=True):
        key = tuple(str(pair.record.fields[field]) for field in ("category", "subcategory", "set_id", last))
        groups[key] = groups.get(key, True) and verdict
    return mean_figure([float(verdict) for verdict in groups.values()], [key[:3] for key in groups])


POPE = Metric("F1 of yes, mean over the splits", _score_pope)
HALLUSION = Metric("share of right answers (aAcc), with figures and questions all right", _score_hallusion)
