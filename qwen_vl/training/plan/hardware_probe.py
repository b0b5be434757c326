"""Hardware probe: the speed of this machine, measured in a few seconds (`qwen-vl plan --probe`)."""

from collections.abc import Callable

import torch

from qwen_vl.families import v1 as family
from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig
from qwen_vl.training.monitor import flops
from qwen_vl.training.monitor.throughput import peak_memory

from . import memory_model

PROBE_TOKENS = 512
COPIED = 2**28  # bytes of the copy that measures bandwidth
REPEATS = 3


def probe(config: QWenConfig, *, on_cpu: bool = False) -> tuple[float, float, float, str]:
    """Return (operations a second in training a block, bytes a second, bytes of a process without a model, source).

    Measure on the GPU in bf16 if there is one, else, or with `on_cpu`, on the CPU in float32.
    """
    process = float(peak_memory("cpu"))
    device = torch.device("cpu" if on_cpu or not torch.accelerator.is_available() else "cuda")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    peak = flops.measured_peak(device, dtype)
    bandwidth, pace = copy_bandwidth(device), block_pace(config, device, dtype)
    source = f"measured on {device.type}: {pace / peak:.0%} of its matrix products' {peak / 1e12:.3g} TFLOP/s"
    return pace, bandwidth, max(process, memory_model.PROCESS), source


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes that a copy in memory reads and writes a second."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_seconds(lambda: target.copy_(source), device)


def block_pace(config: QWenConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of one decoder block, forward and backward with gradients of its weights."""
    config = type(config)(**config.to_dict())
    config._attn_implementation = "sdpa"
    with torch.device(device):
        block = family.new_block(config).to(dtype)
        length = min(PROBE_TOKENS, config.seq_length)
        hidden = torch.randn(1, length, config.hidden_size, dtype=dtype, requires_grad=True)
        inputs = family.block_inputs(config, length)
    work = costs.work([length], targets=0, images=0)
    trained = (family.DECODER_PART, family.EMBEDDINGS_PART)
    operations = costs.in_blocks(costs.training_operations(config, work, trained=trained)) / config.num_hidden_layers

    def step() -> None:
        block(hidden, *inputs)[0].sum().backward()

    return operations / best_seconds(step, device)


def best_seconds(task: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of several repetitions, after one warm-up."""
    task()
    return min(flops.seconds_of(task, device) for _ in range(REPEATS))
