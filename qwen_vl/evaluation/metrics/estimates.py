"""Numbers that are no plain means (F1, precision, sums of scores), with how far each record moves them.

The error of such a number is that of its linear part (the delta method), clustered like the error of a mean.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from qwen_vl.evaluation.metrics.result import Figure, Pair, Unit
from qwen_vl.evaluation.statistics import mean_figure


@dataclass(frozen=True)
class Estimate:
    """A number, and the deviation of each record: to first order, n times what the record adds to it."""

    value: float
    deviations: tuple[float, ...]
    clusters: tuple[Hashable, ...]

    def figure(self, unit: Unit = "percent") -> Figure:
        """Return the number with its clustered standard error; percent is 100 times `value`."""
        figure = mean_figure([self.value + deviation for deviation in self.deviations], self.clusters, unit=unit)
        return replace(figure, value=100 * self.value if unit == "percent" else self.value)


def ratio(numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Return sum(numerators) / sum(denominators), each one number a record; 0 if the denominators are all 0."""
    total = sum(denominators)
    if not total:
        return Estimate(0.0, (0.0,) * len(denominators), tuple(clusters))
    value, mean = sum(numerators) / total, total / len(denominators)
    pairs = zip(numerators, denominators, strict=True)
    return Estimate(value, tuple((above - value * below) / mean for above, below in pairs), tuple(clusters))


def weighted_sum(parts: Iterable[tuple[float, Estimate]]) -> Estimate:
    """Return the sum of weight * estimate over parts that are made of different records."""
    kept = list(parts)
    size = sum(len(part.deviations) for _, part in kept)
    moved = [weight * deviation * size / len(part.deviations) for weight, part in kept for deviation in part.deviations]
    clusters = [cluster for _, part in kept for cluster in part.clusters]
    return Estimate(sum(weight * part.value for weight, part in kept), tuple(moved), tuple(clusters))


def same_records(parts: Sequence[Estimate]) -> Estimate:
    """Return the sum of estimates that are made of the same records, in the same order."""
    moved = [sum(deviations) for deviations in zip(*(part.deviations for part in parts), strict=True)]
    return Estimate(sum(part.value for part in parts), tuple(moved), parts[0].clusters)


def yes_figures(said: Sequence[bool], right: Sequence[bool], clusters: Sequence[Hashable]) -> dict[str, Estimate]:
    """Return precision, recall and f1 of yes: `said` and `right` tell whether the answer and the truth are yes."""
    both = [float(one and other) for one, other in zip(said, right, strict=True)]
    either = [float(one) + float(other) for one, other in zip(said, right, strict=True)]
    return {
        "precision": ratio(both, [float(one) for one in said], clusters),
        "recall": ratio(both, [float(one) for one in right], clusters),
        "f1": ratio([2 * one for one in both], either, clusters),
    }


def require_answers(pairs: Sequence[Pair], *, title: str) -> None:
    """Raise ValueError if there are no records, or some have no accepted answer, as in a test split."""
    if not pairs:
        raise ValueError(f"{title}: no answered records to score; answer at least one")
    without = [pair.record.id for pair in pairs if not pair.record.answers]
    if without:
        raise test_split(title, without)


def test_split(title: str, ids: Sequence[str]) -> ValueError:
    """Return the error for records whose right answers are not in the files."""
    return ValueError(
        f"{title}: {len(ids)} records have no right answer, the first is {ids[0]!r}; a test split is scored by the "
        "benchmark's server: hand in the submission file, or choose a split with answers"
    )
