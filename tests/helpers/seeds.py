"""Random numbers that are the same whichever tests ran before."""

import random
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed=0):
    """Seed torch, numpy and random inside, and leave their states outside as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
