"""The figures that metrics of single records share: a mean over all records, and over those of one kind."""

from collections.abc import Sequence

from qwen_vl.evaluation.metrics.result import Figure, Pair, Unit
from qwen_vl.evaluation.statistics import mean_figure


def text_of(pair: Pair) -> str:
    """Return what the model wrote. Raise ValueError if its answer is the choice of an option."""
    if pair.answer.text is None:
        raise ValueError(
            f"record {pair.record.id!r}: the answer has no text (it ranks options, or is an error); "
            "generate an answer, or use a metric of choices"
        )
    return pair.answer.text


def answers_of(pair: Pair) -> tuple[str, ...]:
    """Return all accepted answers of a record. Raise ValueError if there is none, as in a test split."""
    if not pair.record.answers:
        raise ValueError(
            f"record {pair.record.id!r} has no accepted answer (a test split?); write the submission file instead"
        )
    return pair.record.answers


def mean_of(pairs: Sequence[Pair], scores: Sequence[float], unit: Unit = "percent") -> Figure:
    """Return the mean score, with its error clustered by image. Raise ValueError if there are no records."""
    if not pairs:
        raise ValueError("no answered records to score; answer at least one")
    return mean_figure(scores, [pair.record.cluster for pair in pairs], unit=unit)


def means_by(
    pairs: Sequence[Pair], scores: Sequence[float], field: str, *, first: Sequence[str] = (), unit: Unit = "percent"
) -> dict[str, Figure]:
    """Return {"field/value": mean score} for the values that `field` of the records has.

    A record may have one value or a list of them, and counts for each. The values of `first` come first, the others in
    alphabetical order. Records without the field are left out.
    """
    members: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        values = pair.record.fields.get(field)
        if values is None or values == "":
            continue
        for value in dict.fromkeys(values if isinstance(values, list | tuple) else [values]):
            members.setdefault(str(value), []).append(i)
    ordered = [value for value in first if value in members] + sorted(set(members) - set(first))
    return {
        f"{field}/{value}": mean_of([pairs[i] for i in members[value]], [scores[i] for i in members[value]], unit)
        for value in ordered
    }


def means_of_groups(
    pairs: Sequence[Pair], scores: Sequence[float], groups: Sequence[str], *, first: Sequence[str] = ()
) -> dict[str, Figure]:
    """Return {group: mean score of its records}: those of `first` first, the others in alphabetical order.

    `groups` has the group of each record; a record of group "" is in none.
    """
    found = set(groups) - {""}
    figures = {}
    for group in [name for name in first if name in found] + sorted(found - set(first)):
        rows = [row for row, name in enumerate(groups) if name == group]
        figures[group] = mean_of([pairs[row] for row in rows], [scores[row] for row in rows])
    return figures
