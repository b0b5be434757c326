"""Operation counts from the configuration, compared with those that torch executes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import loading
from qwen_vl.families import v1_costs
from qwen_vl.model import QWenConfig
from qwen_vl.training import param_groups, tuning
from qwen_vl.training.monitor import flops

WAYS = {  # name: what trains
    "full": lambda model: tuning.freeze_for_full(model, fix_vit=True),
    "full with the ViT": lambda model: tuning.freeze_for_full(model, fix_vit=False),
    "lora": lambda model: build.add_adapters(model, LoraOptions(r=8, dropout=0.0)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_formula_counts_what_torch_does(make_checkpoint, way):
    """Compare with torch's counter. Eager attention, which it sees, also computes the masked half of the pairs."""
    model = WAYS[way](loading.load_model(make_checkpoint(), attn_implementation="eager")).train()
    trained = {
        line.part for line in param_groups.rows(model, rates=param_groups.Rates(0), weight_decay=0) if line.trainable
    }
    adapters = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    config, length, number = model.config, 60, 2
    start = config.visual["image_start_id"]
    row = [start, *[start + 2] * 16, start + 1, *range(length - 18)]
    ids = torch.tensor([row] * number)
    labels = torch.full_like(ids, -100)
    labels[:, -5:] = 7
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels, pixel_values=torch.rand(number, 3, 64, 64), use_cache=False).loss.backward()
    batch = v1_costs.work([length] * number, targets=5 * number, images=number)
    ours = v1_costs.training_operations(config, batch, trained=trained, adapter_parameters=adapters)
    # Eager attention: all length^2 pairs.
    expected = sum(ours.values()) - ours["attention"] + ours["attention"] * 2 * length / (length + 1)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_published_size():
    """Check the 9.6B model: about two operations a weight and token, and 1.9B weights for each of 1024 patches."""
    config = QWenConfig()
    parts = v1_costs.operations(config, v1_costs.work([384], targets=100, images=1))
    assert parts["decoder"] / (2 * 384) == pytest.approx(32 * (4 * 4096**2 + 3 * 4096 * 11008))
    assert parts["vit"] / (2 * 1024) == pytest.approx(1.9e9, rel=0.06)  # with its attention
    twice = v1_costs.work([384, 384], targets=200, images=2)
    assert v1_costs.operations(config, twice) == {part: 2 * number for part, number in parts.items()}
    assert twice == v1_costs.work([384], targets=100, images=1) + v1_costs.work([384], targets=100, images=1)


def test_measuring_the_peak_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert flops.measured_peak("cpu", seconds=0.02) > 1e9
    assert torch.equal(torch.rand(3), expected)
