"""Floating-point operations of a training step, from the configuration alone: the one place that counts them.

A multiplication and an addition are two operations. Only matrix products count, as everything else is small beside
them, and only useful ones: padding, recomputed activations and attention to the future are work that a better program
would not do, so they lower the share of the machine's peak (MFU) that is reported.
"""

import time
from functools import cache
from typing import NamedTuple

import torch

PEAK_SECONDS = 0.1  # for how long `measured_peak` multiplies matrices of one size
PEAK_SIZES = {"cpu": (512, 1024), "other": (4096, 8192)}


class Work(NamedTuple):
    """What a batch, or several, hold: numbers that the operations are linear in."""

    tokens: int = 0
    pairs: int = 0  # of a token with one that it attends to: n (n + 1) / 2 for a sample of n tokens
    targets: int = 0
    pictures: int = 0

    def __add__(self, other):
        return Work(*(mine + others for mine, others in zip(self, other, strict=True)))


def work(lengths, *, targets, pictures):
    """The Work of samples of these lengths."""
    return Work(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), targets, pictures)


def forward(config, batch):
    """{"vit", "resampler", "projection", "decoder", "attention", "lm_head"}: operations of a forward pass over a Work.

    "projection" is the vision tower's last matrix, "decoder" the decoder's matrices without its "attention".
    """
    vision, hidden, width = config.visual, config.hidden_size, config.visual["width"]
    patches, queries = (vision["image_size"] // vision["patch_size"]) ** 2, config.image_span_tokens
    heads_width = config.kv_channels * config.num_attention_heads
    vit_block = 4 * width**2 + 2 * width * int(width * vision["mlp_ratio"])  # weights of one block
    vit = patches * 3 * vision["patch_size"] ** 2 * width
    vit += vision["layers"] * (patches * vit_block + 2 * patches**2 * width)
    resampler = patches * width * hidden + 2 * patches * hidden**2  # kv_proj; keys and values
    resampler += 2 * queries * hidden**2 + 2 * queries * patches * hidden  # queries and output; attention
    block = 4 * heads_width * hidden + 3 * hidden * (config.intermediate_size // 2)  # weights of one block
    return {
        "vit": 2 * batch.pictures * vit,
        "resampler": 2 * batch.pictures * resampler,
        "projection": 2 * batch.pictures * queries * hidden**2,
        "decoder": 2 * batch.tokens * config.num_hidden_layers * block,
        "attention": 4 * batch.pairs * config.num_hidden_layers * heads_width,
        "lm_head": 2 * batch.targets * hidden * config.vocab_size,
    }


def training(config, batch, *, trained, adapter_parameters=0, cached=()):
    """{part: operations} of a forward and backward pass over a Work; the parts are those of `forward` and "adapters".

    trained: the parts whose weights train, as `tuning.PARTS` names them: "vit", "resampler", "embeddings", "decoder",
    "lm_head". adapter_parameters: of LoRA in the decoder. cached: parts whose results come from a cache, of "vit",
    "resampler" and "projection".
    Backward costs a forward pass for the gradients of the weights, where they train, and another for those of the
    inputs, where something before them trains; attention has no weights and costs two.
    """
    operations = forward(config, batch)
    through_vision = bool({"vit", "resampler"} & set(trained))
    to_embeds = through_vision or "embeddings" in trained  # gradients pass the decoder down to its inputs
    through_decoder = to_embeds or "decoder" in trained or adapter_parameters > 0
    passes = {
        "vit": 1 + 2 * ("vit" in trained),
        "resampler": 1 + ("resampler" in trained) + through_vision,
        "projection": 1 + ("vit" in trained) + through_vision,
        "decoder": 1 + ("decoder" in trained) + through_decoder,
        "attention": 1 + 2 * through_decoder,
        "lm_head": 1 + ("lm_head" in trained) + through_decoder,
    }
    counted = {part: 0 if part in cached else number * passes[part] for part, number in operations.items()}
    if through_decoder and not to_embeds:  # the first matrix of the first block passes them on to nobody
        counted["decoder"] -= (
            2 * batch.tokens * 3 * config.kv_channels * config.num_attention_heads * config.hidden_size
        )
    return counted | {"adapters": 3 * 2 * batch.tokens * adapter_parameters}


@cache
def measured_peak(device, dtype=torch.float32, seconds=PEAK_SECONDS):
    """Operations a second that this machine reaches in a large product of matrices: the most that training can have.

    The best of several sizes and repetitions, with the threads that this process uses; measured once.
    """
    device, best, generator = torch.device(device), 0.0, torch.Generator().manual_seed(0)
    for size in PEAK_SIZES.get(device.type, PEAK_SIZES["other"]):
        matrix = torch.randn(size, size, generator=generator).to(device, dtype)
        out, until = matrix @ matrix, time.perf_counter() + seconds
        while True:
            took = seconds_of(lambda m=matrix, o=out: torch.mm(m, m, out=o), device)
            best = max(best, 2 * size**3 / took)
            if time.perf_counter() > until:
                break
    return best


def seconds_of(task, device):
    """How long a task takes on the device, everything queued before it not counted."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    task()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
