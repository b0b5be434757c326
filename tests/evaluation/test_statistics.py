"""Errors, intervals and tests against values computed by hand."""

import math
import random
from fractions import Fraction

import pytest

from qwen_vl.evaluation.statistics import Figure, interval, mcnemar_exact, mean_figure, paired_difference


def test_the_error_of_a_mean_is_clustered():
    figure = mean_figure([1, 0, 1, 1], ["a", "a", "b", "c"])  # deviations .25 -.75 | .25 | .25: sums -.5 .25 .25
    assert figure == Figure(75.0, 4, pytest.approx(100 * math.sqrt(0.25 + 0.0625 + 0.0625) / 4), "percent")
    alone = mean_figure([1, 0, 1, 1], unit="share")  # sqrt(p (1 - p) / n)
    assert (alone.value, alone.standard_error) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)))
    # Eight equal answers to one image say no more than one of them.
    many = mean_figure([1] * 8 + [0] * 8, ["x"] * 8 + ["y"] * 8, unit="points")
    assert many.standard_error == pytest.approx(math.sqrt(2 * 0.25 / 4))


def test_an_interval_needs_two_clusters():
    assert mean_figure([1, 0], ["a", "a"]).standard_error is None
    assert interval(mean_figure([1.0])) is None
    low, high = interval(Figure(50.0, 10, 2.0))
    assert (low, high) == (pytest.approx(46.080072, abs=1e-6), pytest.approx(53.919928, abs=1e-6))


def test_the_order_of_scores_changes_nothing():
    rng = random.Random(0)
    rows = [(rng.random(), rng.randrange(9)) for _ in range(200)]
    shuffled = rng.sample(rows, len(rows))
    assert mean_figure(*zip(*rows, strict=True)) == mean_figure(*zip(*shuffled, strict=True))


def test_a_difference_is_paired():
    value, error, low, high = paired_difference([0, 1, 1, 0], [1, 1, 1, 0], ["p", "p", "q", "q"])
    # differences 1 0 0 0, mean .25, deviations .75 -.25 | -.25 -.25: sums .5 -.5
    assert (value, error) == (0.25, pytest.approx(math.sqrt(0.5) / 4))
    assert (low, high) == (pytest.approx(0.25 - 1.959964 * error), pytest.approx(0.25 + 1.959964 * error))
    assert paired_difference([0, 1, 1], [1, 0, 1])[:1] == (0.0,)
    assert paired_difference([0.5, 0.1], [0.5, 0.1])[:2] == (0.0, 0.0)
    assert paired_difference([0], [1]) == (1.0, None, None, None)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: mean_figure([]),
        lambda: mean_figure([1], ["a", "b"]),
        lambda: paired_difference([1], [1, 0]),
        lambda: mcnemar_exact(-1, 2),
    ],
)
def test_wrong_arguments_are_refused(broken):
    with pytest.raises(ValueError, match=r"give|needs|cannot"):
        broken()


def test_mcnemar_is_exact():
    assert mcnemar_exact(0, 0) == mcnemar_exact(5, 5) == 1.0
    assert mcnemar_exact(0, 5) == mcnemar_exact(5, 0) == 2 / 2**5
    assert mcnemar_exact(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024, rel=1e-14)
    for few, many in [(3, 5), (40, 60), (450, 550), (7, 300)]:
        total = few + many
        exact = Fraction(2 * sum(math.comb(total, i) for i in range(few + 1)), 2**total)
        assert mcnemar_exact(few, many) == pytest.approx(float(min(exact, 1)), rel=1e-13)


def test_mcnemar_of_many_records():
    assert mcnemar_exact(49_500, 50_500) == pytest.approx(math.erfc(999 / math.sqrt(2e5)), rel=1e-3)  # continuity
    assert mcnemar_exact(10, 100_000) == 0.0  # below what a float can say
