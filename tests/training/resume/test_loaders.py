"""Data loaders of a run: the epoch is set from outside, and workers end when they are told to."""

import multiprocessing

import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from qwen_vl.data.samplers import RankBatches
from qwen_vl.training.resume import loaders


def test_the_epoch_is_that_of_the_batches():
    batches = RankBatches(4, lambda epoch: [(index + epoch) % 4 for index in range(4)], 2)
    loader = loaders.TrainLoader([10, 11, 12, 13], batch_sampler=batches)
    found = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        found.append([batch.tolist() for batch in loader])
    assert found == [[[10, 11], [12, 13]], [[11, 12], [13, 10]]]


@pytest.mark.parametrize("prepared", [False, True])
def test_workers_end_at_once(prepared):
    loader = DataLoader([1, 2, 3], num_workers=1, persistent_workers=True)
    loader = Accelerator(cpu=True).prepare(loader) if prepared else loader
    assert [batch.item() for batch in loader] == [1, 2, 3] and len(multiprocessing.active_children()) == 1
    loaders.end_workers(loader)
    assert multiprocessing.active_children() == []
