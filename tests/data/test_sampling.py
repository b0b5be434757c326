"""LengthGroupedSampler: every sample once, little padding, the same order for the same seed and epoch."""

import random

from qwen_vl.data.sampling import LengthGroupedSampler


def padding(order, lengths, batch_size):
    """Share of the tokens of all batches that is padding."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths) / padded


def test_order():
    generator = random.Random(0)
    lengths = [generator.randint(20, 2000) for _ in range(3001)]
    sampler = LengthGroupedSampler(lengths, 8, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(3001)) and len(sampler) == 3001
    assert padding(list(range(3001)), lengths, 8) > 0.4 and padding(order, lengths, 8) < 0.02
    assert max(lengths) in [lengths[index] for index in order[:8]]
    assert list(sampler) == order == list(LengthGroupedSampler(lengths, 8, seed=1))
    sampler.set_epoch(1)
    assert list(sampler) != order != list(LengthGroupedSampler(lengths, 8, seed=2))
    firsts = [lengths[index] for index in order[8::8]]  # batches come in no order
    assert sorted(firsts) != firsts != sorted(firsts, reverse=True)


def test_few_samples():
    assert sorted(LengthGroupedSampler([5, 3, 4], 2, seed=0)) == [0, 1, 2]
    assert list(LengthGroupedSampler([5], 4, seed=0)) == [0]
    assert list(LengthGroupedSampler([], 4, seed=0)) == []
