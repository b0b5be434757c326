"""The throughput monitor: counts of batches and of sources between two log lines."""

import pytest
import torch

from qwen_vl.checkpoint import loading
from qwen_vl.training.monitor import flops, throughput


def test_counts_between_two_lines(make_checkpoint, monkeypatch):
    monkeypatch.setattr(flops, "measured_peak", lambda *_: 1e9)
    now = [10.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    meter = throughput.SpeedMeter(loading.load_model(make_checkpoint()), "cpu", torch.float32)
    batch = {"lengths": [3, 5], "input_ids": torch.zeros(2, 5), "target_index": torch.arange(4)}

    def batches():
        for _ in range(2):
            now[0] += 1
            yield batch

    for found in meter.timed(batches()):
        now[0] += 1
        meter.add(found)
        meter.count_step()
    operations = meter.operations()
    logs = meter.take()
    assert (logs["tokens_per_second"], logs["samples_per_second"], logs["step_seconds"]) == (4, 1, 2)
    assert (logs["data_wait"], logs["padding"]) == (0.5, 0.2)
    assert operations > 0 and logs["mfu"] == round(operations / 4 / 1e9, 4)
    assert meter.take()["tokens_per_second"] == 0


def test_sources_are_counted_apart():
    meter = throughput.SourceMeter(["a", "b", "c"])
    sources = torch.tensor([[0, 0, 0], [1, 1, -1]])
    meter.add(sources, torch.tensor([0, 1, 3]), torch.tensor([1.0, 2.0, 5.0]))
    expected = {"tokens/a": 3, "loss/a": 1.5, "tokens/b": 2, "loss/b": 5.0}
    assert meter.take(lambda sums: 2 * sums) == expected | {"tokens/a": 6, "tokens/b": 4}
    assert meter.take() == {}


def test_memory_of_this_process():
    resident, peak = (throughput.own_memory(field) for field in ("VmRSS", "VmHWM"))
    if resident is None:
        pytest.skip("no /proc here")
    assert 0 < resident <= peak == throughput.peak_memory("cpu") and throughput.own_memory("VmNone") is None
