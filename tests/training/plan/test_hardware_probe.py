"""The hardware probe: figures of this machine from the measured seconds."""

import pytest
import torch

from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig
from qwen_vl.training.plan import hardware_probe, memory_model


def test_rates_are_work_divided_by_the_shortest_time(monkeypatch):
    seconds = iter([0.5, 0.25, 1.0] * 2)
    monkeypatch.setattr(hardware_probe.flops, "seconds_of", lambda task, device: next(seconds))
    monkeypatch.setattr(hardware_probe.flops, "measured_peak", lambda *_: 1e12)
    monkeypatch.setattr(hardware_probe, "COPIED", 2**10)
    visual = QWenConfig().visual | {"output_dim": 64}
    config = QWenConfig(hidden_size=64, num_attention_heads=2, kv_channels=32, intermediate_size=128, visual=visual)
    pace, bandwidth, process, source = hardware_probe.probe(config, on_cpu=True)
    assert bandwidth == 2 * 2**10 / 0.25 and process >= memory_model.PROCESS
    work = costs.work([hardware_probe.PROBE_TOKENS], targets=0, images=0)
    counted = costs.training_operations(config, work, trained=("decoder", "embeddings"))
    assert pace == pytest.approx(costs.in_blocks(counted) / config.num_hidden_layers / 0.25)
    assert source.startswith("measured on cpu: ") and source.endswith("1 TFLOP/s")
    assert torch.is_grad_enabled()
