"""TouchStone: a judge compares each answer with another assistant's, in both orders. Source: docs/evaluation.md."""

import math
from collections.abc import Sequence
from dataclasses import replace

from qwen_vl.evaluation.metrics.result import Ask, Figure, Messages, Metric, Pair, Result, SampleScore
from qwen_vl.evaluation.statistics import mean_figure

SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
INSTRUCTION = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "and image description displayed above. AI assistants are provided with detailed image description and questions.\n"
    "Please rate the helpfulness, relevance, accuracy, comprehensiveness of their responses. Each assistant receives "
    "an overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\n"
    "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space. In the subsequent line, please provide a comprehensive "
    "explanation of your evaluation, avoiding any potential bias and ensuring that the order in which the responses "
    "were presented does not affect your judgment."
)
BEST = 10.0  # of the judge's scale
POINTS = 100.0  # of a benchmark's score for each step of that scale


def messages(description: str, question: str, answer_1: str, answer_2: str) -> Messages:
    """Return what a judge is asked about two answers."""
    user = (
        f"[Detailed Image Description]\n{description}\n\n[Question]\n{question}\n\n"
        f"[The Start of Assistant 1's Answer]\n{answer_1}\n\n[The End of Assistant 1's Answer]\n\n"
        f"[The Start of Assistant 2's Answer]\n{answer_2}\n\n[The End of Assistant 2's Answer]\n\n"
        f"[System]\n{INSTRUCTION}\n\n"
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def ratings(reply: str) -> tuple[float, float] | None:
    """Return the two ratings in the first line of a reply, None if there are not exactly two numbers up to 10."""
    words = reply.strip().split("\n", 1)[0].replace(",", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    if len(numbers) != 2 or not all(0 <= number <= BEST for number in numbers):
        return None
    return numbers[0], numbers[1]


def touchstone(pairs: Sequence[Pair], ask: Ask) -> Result:
    """Return the score (at most 1000) over all rounds that the judge rated, and by category.

    ask: passes conversations to the judge and returns its replies. A record is asked about twice, with the answers'
    places exchanged. Its own score is the mean rating as a share of 10; without any rating it is marked as unmatched
    and is not part of a figure. Raise ValueError if the judge rated nothing.
    """
    conversations = []
    for record, answer in pairs:
        said, other = answer.text or "", str(record.fields["gpt4_ha_answer"])
        for one, two in ((said, other), (other, said)):
            conversations.append(messages(str(record.fields["human_annotation"]), record.question, one, two))
    rated = [ratings(reply) for reply in ask(conversations)]
    rounds = [
        [*([first[0]] if first else []), *([second[1]] if second else [])]  # where the model's answer stood
        for first, second in zip(rated[::2], rated[1::2], strict=True)
    ]
    if not any(rounds):
        raise ValueError("the judge gave no two numbers in the first line of any reply; is it able to judge?")
    samples = []
    for (record, answer), values in zip(pairs, rounds, strict=True):
        share = math.fsum(values) / len(values) / BEST if values else 0.0
        samples.append(SampleScore(record.id, share, answer.text or "", not values, {"ratings": values}))
    kinds = [_categories(pair) for pair in pairs]
    figures = {"score": _figure(pairs, rounds)}
    for name in sorted({kind for names in kinds for kind in names}):
        rows = [row for row, names in enumerate(kinds) if name in names and rounds[row]]
        if rows:
            figures[f"category/{name}"] = _figure([pairs[row] for row in rows], [rounds[row] for row in rows])
    num_rounds, num_without = sum(map(len, rounds)), sum(not values for values in rounds)
    notes = (f"{num_rounds} of {2 * len(pairs)} rounds were rated; {num_without} records have no rating",)
    return Result("score", figures, samples, notes)


def _figure(pairs: Sequence[Pair], rounds: Sequence[Sequence[float]]) -> Figure:
    """Return 100 times the mean rating of all rounds; its count is that of the records with a rating."""
    flat = [
        (POINTS * value, pair.record.cluster) for pair, values in zip(pairs, rounds, strict=True) for value in values
    ]
    figure = mean_figure([value for value, _ in flat], [cluster for _, cluster in flat], unit="points")
    return replace(figure, count=sum(bool(values) for values in rounds))


def _categories(pair: Pair) -> list[str]:
    """Return the categories of a record, which may name several, separated by commas."""
    value = pair.record.fields.get("category", "")
    names = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(name).strip() for name in names if str(name).strip()]


TOUCHSTONE = Metric("rating by a judge, both orders", touchstone, needs_judge=True)
