"""Scores of short answers: exact match, the cut of GQA before it, and relaxed accuracy for values read from charts."""

from collections.abc import Callable, Sequence
from typing import Literal

from qwen_vl.evaluation.metrics.breakdown import answers_of, mean_of, text_of
from qwen_vl.evaluation.metrics.result import Metric, Pair, Result, SampleScore

Variant = Literal["official", "published"]

TOLERANCE = 0.05  # of the target's value
LEADING_WORDS = ("is ", "are ", "a ", "an ", "the ")


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals an accepted answer but for case and outer white space, else 0.

    Raise ValueError for no answers.
    """
    _check(answers)
    said = prediction.strip().lower()
    return float(any(said == answer.strip().lower() for answer in answers))


def gqa_answer(text: str) -> str:
    """Return the part of a text that GQA compares, in lower case.

    It is the first clause, cut at the words of LEADING_WORDS, which also match inside a word: "extra large" becomes
    "large", as in the published numbers.
    """
    text = text.strip()
    for sign in ".,!":
        text = text.split(sign, 1)[0]
    text = text.lower()
    for word in LEADING_WORDS:
        parts = text.split(word, 2)
        text = parts[1] if len(parts) > 1 else text
    return text.split(" of", 1)[0].strip()


def relaxed_accuracy(prediction: str, answers: Sequence[str], variant: Variant = "official") -> float:
    """Return 1 if the prediction is within 5% of an accepted number, or equals an accepted text but for case, else 0.

    "official" takes 5% of the accepted answer; "published", as the model's published numbers, of the prediction.
    Raise ValueError for another variant and for no answers.
    """
    _check(answers)
    if variant not in ("official", "published"):
        raise ValueError(f"variant {variant!r} of relaxed accuracy; use 'official' or 'published'")
    said = prediction.strip()
    if variant == "published":
        return float(any(_is_close(answer, said) for answer in answers))
    return float(any(_is_close(said, answer) for answer in answers))


def _is_close(prediction: str, target: str) -> bool:
    number, wanted = _number(prediction), _number(target)
    if number is not None and wanted:  # a target of 0 is compared as a text
        return abs(number - wanted) / abs(wanted) <= TOLERANCE
    return prediction.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _check(answers: Sequence[str]) -> None:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"accepted answers are {answers!r}; give a list of at least one")


def _scores(pairs: Sequence[Pair], rule: Callable[[str, Sequence[str]], float]) -> list[float]:
    return [rule(text_of(pair), answers_of(pair)) for pair in pairs]


def _samples(
    pairs: Sequence[Pair], scores: Sequence[float], scored: Callable[[str], str], **others: Sequence[float]
) -> list[SampleScore]:
    return [
        SampleScore(
            pair.record.id, scores[i], scored(text_of(pair)), extra={name: other[i] for name, other in others.items()}
        )
        for i, pair in enumerate(pairs)
    ]


def _score_exact_match(pairs: Sequence[Pair]) -> Result:
    scores = _scores(pairs, exact_match)
    samples = _samples(pairs, scores, lambda text: text.strip().lower())
    return Result("exact match", {"exact match": mean_of(pairs, scores)}, samples)


def _score_gqa(pairs: Sequence[Pair]) -> Result:
    scores = _scores(pairs, lambda text, answers: exact_match(gqa_answer(text), answers))
    strict = _scores(pairs, exact_match)
    figures = {"accuracy": mean_of(pairs, scores), "accuracy without the cut (strict)": mean_of(pairs, strict)}
    return Result("accuracy", figures, _samples(pairs, scores, gqa_answer, strict=strict))


def _score_relaxed(pairs: Sequence[Pair]) -> Result:
    scores = _scores(pairs, relaxed_accuracy)
    published = _scores(pairs, lambda text, answers: relaxed_accuracy(text, answers, "published"))
    without_stop = _scores(pairs, lambda text, answers: relaxed_accuracy(text.strip().removesuffix("."), answers))
    figures = {
        "relaxed accuracy": mean_of(pairs, scores),
        "relaxed accuracy as published": mean_of(pairs, published),
        "hint: final full stop removed": mean_of(pairs, without_stop),
    }
    samples = _samples(pairs, scores, str.strip, published=published, without_stop=without_stop)
    return Result("relaxed accuracy", figures, samples)


EXACT_MATCH = Metric("exact match", _score_exact_match)
GQA = Metric("exact match after the GQA cut", _score_gqa)
RELAXED_ACCURACY = Metric("relaxed accuracy", _score_relaxed)
