"""Samplers: every sample once, little padding, one order for a seed and epoch, for any number of ranks."""

import random

import pytest

from qwen_vl.data.samplers import LengthGroupedSampler, RankBatches, shuffled


def padding(order, lengths, batch_size):
    """Return the share of the tokens of all batches that is padding."""
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


def consumed(num, order, batch_size, world_size, **options):
    """Return the indices of an epoch over all ranks, batch by batch, and the number of batches of a rank."""
    ranks = [RankBatches(num, order, batch_size, rank=r, world_size=world_size, **options) for r in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert {len(rank) for rank in batches} == {ranks[0].num_left(ranks[0].epoch)}  # no rank waits for another
    return [index for step in zip(*batches, strict=True) for batch in step for index in batch], len(batches[0])


@pytest.mark.parametrize("num", [0, 1, 3, 16, 37])
def test_ranks_share_an_epoch_and_a_resumed_one(num):
    """Yield every index once and in the same order, for any number of ranks before and after."""

    def order(epoch):
        return shuffled(num, 5 + epoch)

    for world_size, batch_size in [(1, 4), (2, 2), (3, 4), (4, 1)]:
        assert consumed(num, order, batch_size, world_size)[0] == order(0)
        for seen in (0, num // 2, num):
            rest, num_batches = consumed(num, order, batch_size, world_size, start=(2, seen))
            assert rest == order(2)[seen:] and num_batches == -(-(num - seen) // (batch_size * world_size))
        whole, _ = consumed(num, order, batch_size, world_size, drop_last=True)
        assert whole == order(0)[: num - num % (batch_size * world_size)]
    batches = RankBatches(num, order, 2, start=(2, num // 2))
    batches.set_epoch(3)  # the epoch after the resumed one is whole
    assert [index for batch in batches for index in batch] == order(3) and len(batches) == batches.num_left(3)
