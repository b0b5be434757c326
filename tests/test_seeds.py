"""Random numbers of tests: the same alone, after others and in any worker."""

import random

import numpy as np
import pytest
import torch

FRESH = (
    random.Random(0).random(),
    np.random.RandomState(0).rand(),
    torch.rand(1, generator=torch.Generator().manual_seed(0)).item(),
)


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.fixture(scope="module")
def drawn():
    """Return what a fixture of the whole module draws."""
    return draw()


@pytest.mark.parametrize("number", range(2))
def test_every_test_draws_the_same_numbers(number):
    assert draw() == FRESH != draw()


def test_a_wide_fixture_draws_the_same_numbers_and_takes_none_from_the_test(request):
    draw()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert request.getfixturevalue("drawn") == FRESH
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
