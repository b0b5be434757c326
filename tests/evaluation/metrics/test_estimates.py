"""Errors of F1, precision and weighted sums against simulated repetitions."""

import numpy as np
import pytest

from qwen_vl.evaluation.metrics.estimates import ratio, weighted_sum, yes_figures


def repeat(rng, draw):
    """Return the spread of figures over new draws, and their mean estimated error, {name: (spread, error)}."""
    drawn = [draw(rng) for _ in range(300)]
    return {
        name: (np.std([one[name].value for one in drawn]), np.mean([one[name].standard_error for one in drawn]))
        for name in drawn[0]
    }


def draw(rng):
    """Return the figures of 400 answers to 100 images: the questions of an image are right or wrong together."""
    clusters = np.repeat(np.arange(100), 4).tolist()
    right = rng.random(400) < 0.4
    is_mistaken = np.repeat(rng.random(100) < 0.25, 4)
    parts = yes_figures((right ^ is_mistaken).tolist(), right.tolist(), clusters)
    parts["sum"] = weighted_sum([(0.25, parts["f1"]), (2.0, ratio(right.tolist()[:80], [1.0] * 80, range(1000, 1080)))])
    return {name: part.figure() for name, part in parts.items()}


def test_errors_are_those_of_repetitions():
    spreads = repeat(np.random.default_rng(0), draw)
    assert set(spreads) == {"precision", "recall", "f1", "sum"}
    for name, (spread, error) in spreads.items():
        assert error == pytest.approx(spread, rel=0.15), name


def test_nothing_to_divide_by_is_zero():
    figure = ratio([0.0, 0.0], [0.0, 0.0], ["a", "b"]).figure()
    assert (figure.value, figure.count) == (0, 2)
