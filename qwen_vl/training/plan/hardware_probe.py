"""What the machine at hand can do, measured in some seconds: `qwen-vl plan --probe`."""

import torch

from qwen_vl.families import v1 as family
from qwen_vl.families import v1_costs as costs
from qwen_vl.training.monitor import flops
from qwen_vl.training.monitor.throughput import peak_memory

from . import memory_model

PROBE_TOKENS = 512
COPIED = 2**28  # bytes of the copy that measures bandwidth
REPEATS = 3


def probe(config, *, on_cpu=False):
    """(operations a second in a block's training step, bytes a second, bytes of a process without a model, source).

    On the GPU in bf16 where there is one, else, or `on_cpu`, on the CPU in float32.
    """
    process = float(peak_memory("cpu"))
    device = torch.device("cpu" if on_cpu or not torch.accelerator.is_available() else "cuda")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    peak = flops.measured_peak(device, dtype)
    bandwidth, pace = copy_bandwidth(device), block_pace(config, device, dtype)
    source = f"measured on {device.type}: {pace / peak:.0%} of its matrix products' {peak / 1e12:.3g} TFLOP/s"
    return pace, bandwidth, max(process, memory_model.PROCESS), source


def copy_bandwidth(device):
    """Bytes read and written a second by a copy in memory."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_seconds(lambda: target.copy_(source), device)


def block_pace(config, device, dtype):
    """Operations a second of one decoder block of this config, forward and backward with gradients of its weights."""
    config = type(config)(**config.to_dict())
    config._attn_implementation = "sdpa"
    with torch.device(device):
        block = family.new_block(config).to(dtype)
        length = min(PROBE_TOKENS, config.seq_length)
        hidden = torch.randn(1, length, config.hidden_size, dtype=dtype, requires_grad=True)
        inputs = family.block_inputs(config, length)
    work = costs.work([length], targets=0, pictures=0)
    trained = (family.DECODER_PART, family.EMBEDDINGS_PART)
    operations = costs.in_blocks(costs.training_operations(config, work, trained=trained)) / config.num_hidden_layers

    def step():
        block(hidden, *inputs)[0].sum().backward()

    return operations / best_seconds(step, device)


def best_seconds(task, device):
    """The shortest of some repetitions, after one that does not count."""
    task()
    return min(flops.seconds_of(task, device) for _ in range(REPEATS))
