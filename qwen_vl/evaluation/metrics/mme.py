"""MME: yes/no questions, two on each image.

A record's fields have `category` (the subtask); its `answers` has Yes or No.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qwen_vl.evaluation.metrics.breakdown import mean_of, text_of
from qwen_vl.evaluation.metrics.estimates import (
    Estimate,
    ratio,
    require_answers,
    same_records,
    weighted_sum,
)
from qwen_vl.evaluation.metrics.result import Figure, Metric, Pair, Result, SampleScore

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
PARTS = {"perception": PERCEPTION, "cognition": COGNITION}


class _Question(NamedTuple):
    subtask: str
    image: str
    is_right: bool
    said: str


def mme_answer(text: str) -> str:
    """Return "yes", "no" or "other": what an answer says by its first four characters, lower-cased."""
    said = text.lower()
    start = said if said in ("yes", "no") else said[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the points of MME: {"perception", "cognition", each subtask that is there, "other"}.

    A record is a mapping with `subtask` (or `category`), `image` (name), `label` (or `answer`; Yes or No) and
    `prediction`; other keys, such as `question`, are not read. A subtask has 100 * share of right answers + 100 *
    share of images with all answers right (at most 200); perception is the sum of ten of them, cognition of four, 0
    where there are none. `other` counts the predictions that say neither yes nor no; they are wrong. Raise ValueError,
    which names record and key, for a missing key, an unknown subtask, or a label that is neither Yes nor No.
    """
    if not records:
        raise ValueError("MME: no records to score; give at least one")
    questions = [_question(number, record) for number, record in enumerate(records, start=1)]
    found = {name: part.value for name, part in _subtasks(questions).items()}
    sums = {part: sum(found.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    return {**sums, **found, "other": float(sum(question.said == "other" for question in questions))}


def _question(number: int, record: Mapping[str, Any]) -> _Question:
    values = []
    for keys in (("subtask", "category"), ("image",), ("label", "answer"), ("prediction",)):
        present = [key for key in keys if key in record]
        if not present:
            raise ValueError(f"MME: record {number} has no {keys[0]!r}; it needs subtask, image, label and prediction")
        values.append(str(record[present[0]]))
    subtask, image, label, prediction = values
    if subtask not in PERCEPTION + COGNITION:
        raise ValueError(
            f"MME: record {number}: unknown subtask {subtask!r}; it must be one of {PERCEPTION + COGNITION}"
        )
    if label.strip().lower() not in ("yes", "no"):
        raise ValueError(f"MME: record {number}: the label is {label!r}, it must be Yes or No")
    said = mme_answer(prediction)
    return _Question(subtask, image, said == label.strip().lower(), said)


def _subtasks(questions: Sequence[_Question]) -> dict[str, Estimate]:
    """Return {subtask: its points, with deviations by image}, in the order of the benchmark."""
    found = {}
    for subtask in PERCEPTION + COGNITION:
        images: dict[str, list[bool]] = {}
        for question in questions:
            if question.subtask == subtask:
                images.setdefault(question.image, []).append(question.is_right)
        if images:
            names = [f"{subtask}/{image}" for image in images]
            right = [100.0 * sum(verdicts) for verdicts in images.values()]
            both = [100.0 * all(verdicts) for verdicts in images.values()]
            share = ratio(right, [float(len(verdicts)) for verdicts in images.values()], names)
            found[subtask] = same_records([share, ratio(both, [1.0] * len(both), names)])
    return found


def _figure(points: Estimate, subtasks: Sequence[str], questions: Sequence[_Question]) -> Figure:
    """Return the figure of points over images, which counts the questions of the subtasks."""
    return replace(points.figure("points"), count=sum(question.subtask in subtasks for question in questions))


def _score(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="MME")
    questions = []
    for number, pair in enumerate(pairs, start=1):
        record = {
            "subtask": pair.record.fields["category"],
            "image": pair.record.cluster,
            "label": pair.record.answers[0],
            "prediction": text_of(pair),
        }
        questions.append(_question(number, record))
    found = _subtasks(questions)
    figures: dict[str, Figure] = {}
    for part, names in PARTS.items():
        there = [name for name in names if name in found]
        if there:
            figures[part] = _figure(weighted_sum((1.0, found[name]) for name in there), there, questions)
    headline = next(iter(figures))
    figures |= {name: _figure(part, [name], questions) for name, part in found.items()}
    figures["unmatched"] = mean_of(pairs, [float(question.said == "other") for question in questions])
    samples = [
        SampleScore(pair.record.id, float(question.is_right), question.said, unmatched=question.said == "other")
        for pair, question in zip(pairs, questions, strict=True)
    ]
    missing = [name for names in PARTS.values() for name in names if name not in found]
    notes = (f"subtasks without records: {', '.join(missing)}",) if missing else ()
    return Result(headline, figures, samples, notes)


MME = Metric("points: accuracy and both questions of an image right", _score)
