"""MMBench and CCBench: every question is asked several times with its options rotated.

A record's fields have `index` (rotation k of question i has i + k * 1,000,000) and perhaps `category`, `l2-category`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_vl.evaluation.metrics.choice import choice_sample
from qwen_vl.evaluation.metrics.estimates import require_answers
from qwen_vl.evaluation.metrics.letters import chosen_option, letter_of, right_option
from qwen_vl.evaluation.metrics.result import Figure, Metric, Pair, Result
from qwen_vl.evaluation.statistics import mean_figure

NEXT_ROTATION = 1_000_000
RULES = ("circular", "vanilla", "vote")
BREAKDOWNS = ("category", "l2-category")


class _Rotation(NamedTuple):
    number: int  # `index` of the record
    right: str  # text of the right option
    chosen: str | None  # text of the chosen one; None if no option could be read
    losses: Mapping[str, float]  # of the options' texts; empty for a generated answer
    fields: Mapping[str, Any]


class _Group(NamedTuple):
    """The verdicts on one question, 0 or 1."""

    circular: float
    vanilla: float
    vote: float
    fields: Mapping[str, Any]
    is_complete: bool  # one rotation an option, as the benchmark asks


def mmbench_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the three accuracies of MMBench, each a share (0 to 1) of questions, not of rotations.

    A record is a mapping with `index`, `options` (texts, in the order of the letters), `answer` (letter), `prediction`
    (letter, or None if no letter could be read) and perhaps `losses` (one an option), `category`, `l2-category`.
    Rotations of a question have the same index modulo 1,000,000.

    `circular`: every rotation right. `vanilla`: the first rotation right. `vote`: the option text chosen most often
    over the rotations is right; at a tie the one with the smaller summed loss, then the one that was chosen first.
    `category` and `l2-category`: {name: circular}. `groups` counts the questions, `unmatched` the records without a
    letter. Raise ValueError, which names record and key, for a missing key or a letter that no option has.
    """
    if not records:
        raise ValueError("MMBench: no records to score; give at least one")
    rotations = [_rotation(number, record) for number, record in enumerate(records, start=1)]
    groups = list(_grouped(rotations).values())
    scores: dict[str, Any] = {rule: _mean([getattr(group, rule) for group in groups]) for rule in RULES}
    for field in BREAKDOWNS:
        names = sorted({str(group.fields[field]) for group in groups if group.fields.get(field)})
        scores[field] = {
            name: _mean([group.circular for group in groups if str(group.fields.get(field)) == name]) for name in names
        }
    unmatched = sum(rotation.chosen is None for rotation in rotations)
    return {**scores, "groups": len(groups), "unmatched": unmatched}


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _rotation(number: int, record: Mapping[str, Any]) -> _Rotation:
    for key in ("index", "options", "answer", "prediction"):
        if key not in record:
            raise ValueError(f"MMBench: record {number} has no {key!r}; it needs index, options, answer and prediction")
    options = [str(option) for option in record["options"]]
    by_letter = {letter_of(place): option for place, option in enumerate(options)}
    for key in ("answer", "prediction"):
        if record[key] not in by_letter and not (key == "prediction" and record[key] is None):
            raise ValueError(f"MMBench: record {number}: {key} is {record[key]!r}, it must be one of {list(by_letter)}")
    losses = record.get("losses") or ()
    if len(losses) not in (0, len(options)):
        raise ValueError(f"MMBench: record {number} has {len(losses)} losses for {len(options)} options")
    chosen = None if record["prediction"] is None else by_letter[record["prediction"]]
    by_text = dict(zip(options, losses, strict=False))
    return _Rotation(int(record["index"]), by_letter[record["answer"]], chosen, by_text, record)


def _grouped(rotations: Sequence[_Rotation]) -> dict[int, _Group]:
    """Return {index of the question: its verdicts}, sorted by index. Raise ValueError for an index that comes twice."""
    members: dict[int, list[_Rotation]] = {}
    for rotation in sorted(rotations, key=lambda rotation: rotation.number):
        rows = members.setdefault(rotation.number % NEXT_ROTATION, [])
        if rows and rows[-1].number == rotation.number:
            raise ValueError(f"MMBench: index {rotation.number} comes twice; keep one of the two records")
        rows.append(rotation)
    return {question: _judge(rows) for question, rows in members.items()}


def _judge(rows: Sequence[_Rotation]) -> _Group:
    first = rows[0]
    circular = all(row.chosen == row.right for row in rows)
    return _Group(
        float(circular),
        float(first.chosen == first.right),
        float(_voted(rows) == first.right),
        first.fields,
        len(rows) == len(first.fields["options"]),
    )


def _voted(rows: Sequence[_Rotation]) -> str | None:
    """Return the text that most rotations chose; None if none could be read."""
    votes = [row.chosen for row in rows if row.chosen is not None]
    order = list(dict.fromkeys(votes))

    def rank(text: str) -> tuple[int, float, int]:
        return -votes.count(text), sum(row.losses.get(text, 0.0) for row in rows), order.index(text)

    return min(order, key=rank, default=None)


def _mapping(pair: Pair) -> dict[str, Any]:
    """Return the record of `mmbench_scores` for an answered record."""
    record = pair.record
    return {
        "index": record.fields["index"],
        "options": record.options,
        "answer": letter_of(right_option(pair)),
        "prediction": letter_of(chosen_option(pair)) or None,
        "losses": pair.answer.losses,
        **{field: record.fields.get(field) for field in BREAKDOWNS},
    }


def _score(pairs: Sequence[Pair]) -> Result:
    require_answers(pairs, title="MMBench")
    rotations = [_rotation(number, _mapping(pair)) for number, pair in enumerate(pairs, start=1)]
    by_question = _grouped(rotations)
    groups, questions = list(by_question.values()), list(by_question)
    figures: dict[str, Figure] = {
        rule: mean_figure([getattr(group, rule) for group in groups], questions) for rule in RULES
    }
    samples = [choice_sample(pair) for pair in pairs]
    unmatched = [float(sample.unmatched) for sample in samples]
    figures["unmatched"] = mean_figure(unmatched, [rotation.number % NEXT_ROTATION for rotation in rotations])
    for field in BREAKDOWNS:
        for name in sorted({str(group.fields[field]) for group in groups if group.fields.get(field)}):
            rows = [row for row, group in enumerate(groups) if str(group.fields.get(field)) == name]
            verdicts = [groups[row].circular for row in rows]
            figures[f"{field}/{name}"] = mean_figure(verdicts, [questions[row] for row in rows])
    cut = sum(not group.is_complete for group in groups)
    notes = (f"{cut} of {len(groups)} questions lack rotations: circular is too high",) if cut else ()
    return Result("circular", figures, samples, notes)


MMBENCH = Metric("share of questions with all rotations right (circular)", _score)
