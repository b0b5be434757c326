"""The step profiler: which steps are sampled, and where their time goes."""

import pytest
import torch

from qwen_vl.checkpoint import loading
from qwen_vl.training.monitor import step_profiler


@pytest.fixture
def model(make_checkpoint):
    return loading.load_model(make_checkpoint())


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [0, 1, 2, 3, 4, 5, 6]), (3, [1, 4])])
def test_every_nth_step_is_sampled_from_the_second_on(model, every, expected):
    meter, sampled = step_profiler.PhaseMeter(model, "cpu", every=every), []
    for step in range(7):
        meter.begin(step)
        sampled += [step] if meter.is_on else []
        meter.end()
    assert sampled == expected and bool(meter.take()) == bool(expected) and meter.take() == {}


def test_phases_add_up_to_the_step_and_hooks_are_removed(model, monkeypatch):
    """Check with a clock that counts its readings: each phase gets the marks that end in it."""
    clock = iter(range(100))
    monkeypatch.setattr(step_profiler.time, "perf_counter", lambda: float(next(clock)))
    meter = step_profiler.PhaseMeter(model, "cpu", every=1)
    meter.begin(0)
    meter.mark("data")
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    meter.mark_backward()
    meter.end()
    found = meter.take()
    assert sum(found.values()) == next(clock) - 1
    assert found["time/data"] == found["time/optimizer"] == 1 and found["time/communication"] == 0
    assert found["time/decoder_forward"] >= 1 and found["time/loss"] >= 1 and found["time/decoder_backward"] >= 1
    model(input_ids=ids)
    assert meter.take() == {}
