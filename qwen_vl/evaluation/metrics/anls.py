"""ANLS: average normalized Levenshtein similarity, for answers that are read from documents."""

from collections.abc import Sequence

from qwen_vl.evaluation.metrics.breakdown import answers_of, mean_of, means_by, text_of
from qwen_vl.evaluation.metrics.result import Metric, Pair, Result, SampleScore

THRESHOLD = 0.5  # a smaller similarity is 0; one of exactly 0.5 stays
BREAKDOWNS = {  # of InfographicVQA: field of a record, and its values as its files spell them
    "answer_type": ("image span", "question span", "multiple spans", "non span"),
    "evidence": ("table/list", "textual", "photo/pciture/visual_objects", "figure", "map"),
    "operation/reasoning": ("comparison", "arithmetic", "counting"),
}


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Return the similarity to the most similar accepted answer, 0 to 1. Raise ValueError for no answers.

    The distance is that of the texts in lower case without extra white space, the length that of the texts as given.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"accepted answers are {answers!r}; give a list of at least one")
    similarity = 1 - min(_difference(prediction, answer) for answer in answers)
    return 0.0 if similarity < THRESHOLD else similarity


def edit_distance(one: str, other: str) -> int:
    """Return the Levenshtein distance of two texts in characters.

    The columns of the usual table are kept as bits of integers, one bit per row (Myers 1999; Hyyro 2003).
    """
    if one == other:
        return 0
    if not one or not other:
        return len(one) or len(other)
    rows: dict[str, int] = {}
    for i, character in enumerate(one):
        rows[character] = rows.get(character, 0) | 1 << i
    everything, last, distance = (1 << len(one)) - 1, 1 << (len(one) - 1), len(one)
    rises, falls = everything, 0  # rows where a column goes up or down by one
    for character in other:
        same = rows.get(character, 0)
        diagonal = (((same & rises) + rises) ^ rises) | same | falls
        right_up, right_down = falls | ~(diagonal | rises), rises & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        rises = (right_down | ~(diagonal | right_up)) & everything
        falls = right_up & diagonal & everything
    return distance


def _difference(prediction: str, answer: str) -> float:
    length = max(len(prediction.upper()), len(answer.upper()))
    return edit_distance(_normal(prediction), _normal(answer)) / length if length else 0.0


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _score(pairs: Sequence[Pair]) -> Result:
    samples = [SampleScore(p.record.id, anls(text_of(p), answers_of(p)), _normal(text_of(p))) for p in pairs]
    scores = [sample.score for sample in samples]
    figures = {"ANLS": mean_of(pairs, scores)}
    for field, values in BREAKDOWNS.items():
        figures |= means_by(pairs, scores, field, first=values)
    return Result("ANLS", figures, samples)


ANLS = Metric("ANLS", _score)
