"""OCRBench: an accepted answer must be contained in what the model says.

A record's fields have `type` (one of ten) and perhaps `dataset`; the formulas are those of HME100k.
"""

from collections.abc import Sequence
from dataclasses import replace

from qwen_vl.evaluation.metrics.breakdown import text_of
from qwen_vl.evaluation.metrics.estimates import require_answers
from qwen_vl.evaluation.metrics.result import Figure, Metric, Pair, Result, SampleScore
from qwen_vl.evaluation.records import Record
from qwen_vl.evaluation.statistics import mean_figure

FORMULA_TYPE = "handwritten mathematical expression recognition"
FORMULA_DATASET = "hme100k"


def contains_answer(prediction: str, answers: Sequence[str], *, is_formula: bool = False) -> bool:
    """Return whether an accepted answer is contained in the prediction.

    Both are lower-cased and stripped, newlines become spaces; of formulas the case is kept and spaces are removed.
    """
    said = _plain(prediction, is_formula)
    return any(_plain(answer, is_formula) in said for answer in answers)


def _plain(text: str, is_formula: bool) -> str:
    if is_formula:
        return text.strip().replace("\n", " ").replace(" ", "")
    return text.lower().strip().replace("\n", " ")


def _is_formula(record: Record) -> bool:
    kinds = {str(record.fields.get(field, "")).strip().lower() for field in ("type", "dataset")}
    return bool(kinds & {FORMULA_TYPE, FORMULA_DATASET})


def _score(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="OCRBench")
    samples = []
    for pair in pairs:
        text, is_formula = text_of(pair), _is_formula(pair.record)
        is_right = contains_answer(text, pair.record.answers, is_formula=is_formula)
        samples.append(SampleScore(pair.record.id, float(is_right), _plain(text, is_formula)))
    types = [str(pair.record.fields.get("type", "")) for pair in pairs]
    figures = {"score": _count(samples, pairs, range(len(pairs)))}
    for name in dict.fromkeys(filter(None, types)):
        figures[f"type/{name}"] = _count(samples, pairs, [row for row, found in enumerate(types) if found == name])
    return Result("score", figures, samples)


def _count(samples: Sequence[SampleScore], pairs: Sequence[Pair], rows: Sequence[int]) -> Figure:
    """Return the number of right answers in some rows, with the error of that number."""
    clusters = [pairs[row].record.cluster for row in rows]
    share = mean_figure([samples[row].score for row in rows], clusters, unit="share")
    error = share.standard_error
    right = sum(samples[row].score for row in rows)
    return replace(share, value=right, standard_error=None if error is None else error * len(rows), unit="count")


OCRBENCH = Metric("number of right answers, of 1,000", _score)
