"""Operations and bytes of a model; tests/training/monitor/test_flops.py compares them with those of torch."""

import dataclasses

import pytest

from qwen_vl.families import v1_costs
from qwen_vl.families.v1 import DECODER_PART, EMBEDDINGS_PART, HEAD_PART, PARTS, RESAMPLER_PART, VIT_PART
from qwen_vl.model import QWenConfig

CONFIG = QWenConfig()
BATCH = v1_costs.work([384, 100], targets=100, images=1)
EVERYTHING = {part for part, _ in PARTS}


def test_work_adds_up():
    assert v1_costs.Work(484, 384 * 385 // 2 + 100 * 101 // 2, 100, 1) == BATCH
    assert BATCH + v1_costs.work([384], targets=1, images=2) == v1_costs.work([100, 384, 384], targets=101, images=3)
    assert v1_costs.Work() + BATCH == BATCH
    more = v1_costs.operations(CONFIG, dataclasses.replace(BATCH, images=3))
    once = v1_costs.operations(CONFIG, BATCH)
    assert {part for part in once if more[part] == 3 * once[part]} == set(v1_costs.TOWER_PARTS)


@pytest.mark.parametrize(
    ("trained", "adapters", "passes"),
    [
        # forward, gradients of weights, gradients of inputs: vit, resampler, decoder, attention, lm_head
        (EVERYTHING, 0, (3, 3, 3, 3, 3)),
        (EVERYTHING - {VIT_PART}, 0, (1, 3, 3, 3, 3)),
        ({EMBEDDINGS_PART}, 0, (1, 1, 2, 3, 2)),
        ({HEAD_PART}, 0, (1, 1, 1, 1, 2)),
        ((), 0, (1, 1, 1, 1, 1)),
        ((), 10, (1, 1, None, 3, 2)),  # the first matrix needs no gradients of its inputs
    ],
)
def test_passes_are_those_that_the_gradients_need(trained, adapters, passes):
    once = v1_costs.operations(CONFIG, BATCH)
    found = v1_costs.training_operations(CONFIG, BATCH, trained=trained, adapter_parameters=adapters)
    parts = (VIT_PART, RESAMPLER_PART, DECODER_PART, v1_costs.ATTENTION, HEAD_PART)
    for part, number in zip(parts, passes, strict=True):
        first = 2 * BATCH.tokens * 3 * 4096 * 4096
        assert found[part] == (2 * once[part] - first if number is None else number * once[part]), part
    assert found[v1_costs.ADAPTERS] == 6 * BATCH.tokens * adapters
    assert v1_costs.in_blocks(found) == found[DECODER_PART] + found[v1_costs.ATTENTION]
    cached = v1_costs.training_operations(CONFIG, BATCH, trained=trained, cached=v1_costs.TOWER_PARTS)
    assert not any(cached[part] for part in v1_costs.TOWER_PARTS)


def test_weights_of_a_block_are_those_of_the_published_model():
    assert v1_costs.block_weights(CONFIG) == 4 * 4096**2 + 3 * 4096 * 11008
    assert v1_costs.largest_linear(CONFIG) == 3 * 4096**2
    assert v1_costs.patches_of(CONFIG) == 1024
