"""Uncertainty of a mean, of the difference of two paired runs, and of right/wrong counts that differ."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Unit = Literal["percent", "points", "count", "share"]
NORMAL_95 = 1.959963984540054  # 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Figure:
    """One number of a report. `value` and `standard_error` are in `unit`; percent goes from 0 to 100."""

    value: float
    count: int  # of records that it is made of
    standard_error: float | None = None  # clustered by image; None where it is not defined
    unit: Unit = "percent"


class Difference(NamedTuple):
    """How much higher the second of two paired runs is, with its 95% interval, in the unit of the scores."""

    value: float
    standard_error: float | None  # None with fewer than two clusters
    low: float | None
    high: float | None


def mean_figure(
    scores: Sequence[float], clusters: Sequence[Hashable] | None = None, *, unit: Unit = "percent"
) -> Figure:
    """Return the mean of scores with its standard error, clustered: scores of one cluster need not be independent.

    Scores go from 0 to 1, and "percent" multiplies by 100; other units leave them as they are. Without `clusters` each
    score is one of its own. Raise ValueError for no scores or for unequal lengths.
    """
    factor = 100.0 if unit == "percent" else 1.0
    mean, error = _mean_and_error(scores, clusters)
    return Figure(mean * factor, len(scores), None if error is None else error * factor, unit)


def interval(figure: Figure) -> tuple[float, float] | None:
    """Return the 95% interval (low, high) of a figure, in its unit; None where its standard error is not defined."""
    if figure.standard_error is None:
        return None
    reach = NORMAL_95 * figure.standard_error
    return figure.value - reach, figure.value + reach


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Difference:
    """Return mean(b) - mean(a) of scores of the same records in the same order, its clustered error and interval.

    Raise ValueError for no scores or for unequal lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}; a paired difference needs the same records in both runs")
    mean, error = _mean_and_error([right - left for left, right in zip(a, b, strict=True)], clusters)
    if error is None:
        return Difference(mean, None, None, None)
    return Difference(mean, error, mean - NORMAL_95 * error, mean + NORMAL_95 * error)


def mcnemar_exact(num_only_a: int, num_only_b: int) -> float:
    """Return the two-sided exact p-value of McNemar's test: may the records that only one run got right be chance?

    The arguments count the records that only the first, and only the second run answered correctly. Raise ValueError
    if one is negative.
    """
    if num_only_a < 0 or num_only_b < 0:
        raise ValueError(f"counts of records are {num_only_a} and {num_only_b}; they cannot be negative")
    smaller, total = min(num_only_a, num_only_b), num_only_a + num_only_b
    tail = term = 1.0  # binomial probabilities of smaller, smaller - 1, .., 0, divided by the first of them
    for count in range(smaller, 0, -1):
        term *= count / (total - count + 1)
        tail += term
        if term < 1e-18 * tail:
            break
    largest = math.comb(total, smaller) / (1 << total)  # of two integers, so it neither overflows nor loses digits
    return min(1.0, 2 * tail * largest)


def _mean_and_error(scores: Sequence[float], clusters: Sequence[Hashable] | None) -> tuple[float, float | None]:
    """Return the mean and its error: SE^2 = 1/n^2 * sum over clusters of (sum of the deviations in it)^2."""
    names = range(len(scores)) if clusters is None else clusters
    if len(scores) != len(names):
        raise ValueError(f"{len(scores)} scores, but {len(names)} clusters; give one cluster for each score")
    if not scores:
        raise ValueError("no scores; give at least one")
    mean = math.fsum(scores) / len(scores)
    deviations: defaultdict[Hashable, list[float]] = defaultdict(list)
    for score, name in zip(scores, names, strict=True):
        deviations[name].append(score - mean)
    if len(deviations) < 2:
        return mean, None
    # fsum is exact, so the order of the records changes nothing
    squares = math.fsum(math.fsum(members) ** 2 for members in deviations.values())
    return mean, math.sqrt(squares) / len(scores)
