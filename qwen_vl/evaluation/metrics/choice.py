"""Questions with options: ScienceQA, MMStar, MMMU, AI2D by letter, SEED-Bench.

A record's `answers` has the letter (or the text) of the right option; the answer is a ranking, or a text that names a
letter. Breakdowns follow from a record's fields: `subject`, `grade`, `topic`, `category`, `l2-category`, and for
ScienceQA (records with a grade) what stands beside the question: context/text (a hint), context/image, context/none.
SEED-Bench has `data_type` (image or video), and perhaps `question_type_id` (1 to 12), the dimension.
"""

import re
from collections.abc import Sequence

from qwen_vl.evaluation.metrics.breakdown import mean_of, means_by, means_of_groups, text_of
from qwen_vl.evaluation.metrics.estimates import require_answers
from qwen_vl.evaluation.metrics.letters import chosen_option, letter_of, right_option
from qwen_vl.evaluation.metrics.result import Figure, Metric, Pair, Result, SampleScore
from qwen_vl.evaluation.records import Record

BREAKDOWNS = ("subject", "topic", "category", "l2-category")
SEED_DIMENSIONS = (
    "dimension/Scene Understanding",
    "dimension/Instance Identity",
    "dimension/Instance Attributes",
    "dimension/Instance Location",
    "dimension/Instances Counting",
    "dimension/Spatial Relation",
    "dimension/Instance Interaction",
    "dimension/Visual Reasoning",
    "dimension/Text Recognition",
    "dimension/Action Recognition",
    "dimension/Action Prediction",
    "dimension/Procedure Understanding",
)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


def choice_sample(pair: Pair) -> SampleScore:
    """Return the score of one question: 1 for the right option, 0 for another or none.

    A question without options (of MMMU) is right if its answer is an accepted one: case, outer white space and a final
    full stop apart, numbers rounded to two decimals.
    """
    record = pair.record
    if not record.options:
        said = _plain(text_of(pair))
        return SampleScore(record.id, float(said in {_plain(answer) for answer in record.answers}), said)
    chosen, right = chosen_option(pair), right_option(pair)
    extra = {"right": letter_of(right)}
    return SampleScore(record.id, float(chosen == right), letter_of(chosen), unmatched=chosen is None, extra=extra)


def _plain(text: str) -> str:
    plain = THOUSANDS.sub("", " ".join(text.split()).casefold().removesuffix(".").strip())
    return str(round(float(plain), 2) + 0.0) if NUMBER.fullmatch(plain) else plain


def _groups(record: Record) -> dict[str, str]:
    """Return {breakdown: the record's group in it} of what is not a field as it stands."""
    groups = {"form": "form/options" if record.options else "form/open"}
    grade = re.search(r"\d+", str(record.fields.get("grade", "")))
    if grade:  # ScienceQA; a question may have a hint and an image
        has_hint = record.hint.strip() not in ("", "N/A")
        groups["grade"] = "grade/1-6" if int(grade[0]) <= 6 else "grade/7-12"
        groups["context text"] = "context/text" if has_hint else ""
        groups["context image"] = "context/image" if record.images else ""
        groups["no context"] = "" if has_hint or record.images else "context/none"
    return groups


def _score_choice(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="Options")
    samples = [choice_sample(pair) for pair in pairs]
    scores = [sample.score for sample in samples]
    figures = {"accuracy": mean_of(pairs, scores), "unmatched": _unmatched(pairs, samples)}
    groups = [_groups(pair.record) for pair in pairs]
    for field in BREAKDOWNS:
        figures |= means_by(pairs, scores, field)
    for breakdown in dict.fromkeys(name for found in groups for name in found):
        of_records = [found.get(breakdown, "") for found in groups]
        if breakdown != "form" or len(set(of_records)) > 1:
            figures |= means_of_groups(pairs, scores, of_records)
    return Result("accuracy", figures, samples, _notes(pairs))


def _unmatched(pairs: Sequence[Pair], samples: Sequence[SampleScore]) -> Figure:
    return mean_of(pairs, [float(sample.unmatched) for sample in samples])


def _notes(pairs: Sequence[Pair]) -> tuple[str, ...]:
    ranked = sum(pair.answer.choice is not None for pair in pairs)
    how = "ranked by likelihood" if ranked == len(pairs) else "generated, the letter read from the text"
    if 0 < ranked < len(pairs):
        how = f"{ranked} ranked by likelihood, {len(pairs) - ranked} generated"
    return (f"answers: {how}",)


def _score_seed_bench(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="SEED-Bench")
    samples = [choice_sample(pair) for pair in pairs]
    scores = [sample.score for sample in samples]
    figures = {"all": mean_of(pairs, scores)}
    figures |= means_of_groups(pairs, scores, [_data_type(pair.record) for pair in pairs])
    figures |= means_of_groups(pairs, scores, [_dimension(pair.record) for pair in pairs], first=SEED_DIMENSIONS)
    figures["unmatched"] = _unmatched(pairs, samples)
    return Result("all", figures, samples, _notes(pairs))


def _dimension(record: Record) -> str:
    number = record.fields.get("question_type_id")
    if number is None:  # converted files do not have it
        return ""
    if int(number) not in range(1, len(SEED_DIMENSIONS) + 1):
        raise ValueError(f"record {record.id!r}: question_type_id is {number}, it must be 1 to 12; correct the file")
    return SEED_DIMENSIONS[int(number) - 1]


def _data_type(record: Record) -> str:
    kind = str(record.fields.get("data_type"))
    if kind not in ("image", "video"):
        raise ValueError(f"record {record.id!r}: data_type is {kind!r}, it must be image or video; correct the file")
    return kind


CHOICE = Metric("share of right options", _score_choice)
SEED_BENCH = Metric("share of right options, by dimension", _score_seed_bench)
