"""Operations and bytes of a Qwen-VL v1 model, counted from its configuration alone.

A multiplication and an addition are two operations. Only matrix products count, because all others are small. Padding,
recomputed activations and attention to the future do not count, because they are not needed. So they lower the reported
share of the machine's peak (MFU).
Bytes are those that autograd keeps for each operation of a block; docs/plan.md has the assumptions.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qwen_vl.model import QWenConfig

from .v1 import DECODER_PART, EMBEDDINGS_PART, HEAD_PART, RESAMPLER_PART, TOWER_OUTPUT, VIT_OUTPUT, VIT_PART

# Parts in addition to those with weights of their own, which are in `v1.PARTS`.
PROJECTION, ATTENTION, ADAPTERS = "projection", "attention", "adapters"
TOWER_PARTS = (VIT_PART, RESAMPLER_PART, PROJECTION)
SPARED = {TOWER_OUTPUT: TOWER_PARTS, VIT_OUTPUT: (VIT_PART,)}  # input in place of pixels: the parts that do not run


@dataclass(frozen=True)
class Work:
    """The contents of one or more batches: numbers that the operations are linear in."""

    tokens: int = 0
    pairs: int = 0  # (token, token that it attends to): n (n + 1) / 2 for a sample of n tokens
    targets: int = 0
    images: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.targets + other.targets,
            self.images + other.images,
        )


class BlockRun(NamedTuple):
    """The training settings that the memory of a decoder block depends on, in addition to the config."""

    batch: int
    length: int  # tokens of each row
    width: int  # bytes of a number in matrix products
    residual: int  # bytes of a number in the hidden states between blocks
    with_adapters: bool  # instead of training the weights themselves
    eager: bool  # attention that keeps its scores
    autocast: bool
    on_cpu: bool


def work(lengths: Sequence[int], *, targets: int, images: int) -> Work:
    """Return the Work of samples of these lengths."""
    return Work(sum(lengths), sum(n * (n + 1) // 2 for n in lengths), targets, images)


def heads_width(config: QWenConfig) -> int:
    """Return the total width of the decoder's heads."""
    return config.kv_channels * config.num_attention_heads


def mlp_width(config: QWenConfig) -> int:
    """Return the width of the hidden layer of the decoder's MLP."""
    return config.intermediate_size // 2


def patches_of(config: QWenConfig) -> int:
    """Return the number of patches of an image."""
    return (config.visual["image_size"] // config.visual["patch_size"]) ** 2


def operations(config: QWenConfig, batch: Work) -> dict[str, int]:
    """Return {part: operations} for a forward pass over a Work.

    The parts are "vit", "resampler", "projection" (the vision tower's last matrix), "decoder" (its matrices),
    "attention" (the decoder's) and "lm_head".
    """
    vision, hidden, width = config.visual, config.hidden_size, config.visual["width"]
    patches, queries = patches_of(config), config.image_span_tokens
    vit_block = 4 * width**2 + 2 * width * int(width * vision["mlp_ratio"])  # weights of one block
    vit = patches * 3 * vision["patch_size"] ** 2 * width
    vit += vision["layers"] * (patches * vit_block + 2 * patches**2 * width)
    resampler = patches * width * hidden + 2 * patches * hidden**2  # kv_proj; keys and values
    resampler += 2 * queries * hidden**2 + 2 * queries * patches * hidden  # queries and output; attention
    return {
        VIT_PART: 2 * batch.images * vit,
        RESAMPLER_PART: 2 * batch.images * resampler,
        PROJECTION: 2 * batch.images * queries * hidden**2,
        DECODER_PART: 2 * batch.tokens * config.num_hidden_layers * block_weights(config),
        ATTENTION: 4 * batch.pairs * config.num_hidden_layers * heads_width(config),
        HEAD_PART: 2 * batch.targets * hidden * config.vocab_size,
    }


def training_operations(
    config: QWenConfig,
    batch: Work,
    *,
    trained: Collection[str],
    adapter_parameters: int = 0,
    cached: Collection[str] = (),
) -> dict[str, int]:
    """Return {part: operations} for a forward and backward pass over a Work: parts of `operations`, and "adapters".

    trained: the parts whose weights train, as `v1.PARTS` names them. adapter_parameters: of LoRA in the decoder.
    cached: parts whose results come from a cache, of TOWER_PARTS.
    Backward costs one forward pass for the gradients of weights, if they train, and one for the gradients of inputs,
    if something before them trains. Attention has no weights, and costs two.
    """
    forward = operations(config, batch)
    through_vision = bool({VIT_PART, RESAMPLER_PART} & set(trained))
    to_embeds = through_vision or EMBEDDINGS_PART in trained  # gradients go through the decoder to its inputs
    through_decoder = to_embeds or DECODER_PART in trained or adapter_parameters > 0
    passes = {
        VIT_PART: 1 + 2 * (VIT_PART in trained),
        RESAMPLER_PART: 1 + (RESAMPLER_PART in trained) + through_vision,
        PROJECTION: 1 + (VIT_PART in trained) + through_vision,
        DECODER_PART: 1 + (DECODER_PART in trained) + through_decoder,
        ATTENTION: 1 + 2 * through_decoder,
        HEAD_PART: 1 + (HEAD_PART in trained) + through_decoder,
    }
    counted = {part: 0 if part in cached else number * passes[part] for part, number in forward.items()}
    if through_decoder and not to_embeds:  # the first matrix of the first block needs no gradients of its inputs
        counted[DECODER_PART] -= 2 * batch.tokens * 3 * heads_width(config) * config.hidden_size
    return counted | {ADAPTERS: 3 * 2 * batch.tokens * adapter_parameters}


def in_blocks(counted: dict[str, int]) -> int:
    """Return the operations of the decoder blocks, from operations by part."""
    return counted[DECODER_PART] + counted[ATTENTION]


def block_weights(config: QWenConfig) -> int:
    """Return the number of weights in the linears of one decoder block."""
    return config.hidden_size * (4 * heads_width(config) + 3 * mlp_width(config))


def largest_linear(config: QWenConfig) -> int:
    """Return the number of weights in the largest linear of a decoder block."""
    return max(3 * heads_width(config), mlp_width(config)) * config.hidden_size


def block_bytes(config: QWenConfig, run: BlockRun) -> int:
    """Return the bytes that autograd keeps for one decoder block and all tokens of a batch."""
    hidden, half_width, width = config.hidden_size, mlp_width(config), run.width
    each = 2 * hidden * run.residual  # the inputs of the two norms
    each += 6 * heads_width(config) * width  # queries, keys, values as projected; rotated queries and keys; the output
    if run.with_adapters:
        mask = width if run.on_cpu else 1
        each += (3 * hidden + heads_width(config)) * (width + mask)  # output of dropout for four adapters, and its mask
        each += 2 * half_width * width  # both branches
    else:
        each += 4 * hidden * width  # results of the norms, before and after their weights
        each += 3 * half_width * width  # both branches and their product
    saved = each * run.batch * run.length
    if run.eager:
        # Under autocast the softmax is kept in float32 and in half precision.
        saved += scores(config, run) * (6 if run.autocast else width)
    return saved


def moving_bytes(config: QWenConfig, run: BlockRun) -> int:
    """Return the bytes that the backward pass of one decoder block allocates in addition to `block_bytes`."""
    branches = 5 if run.with_adapters else 3  # with the results of the adapters, before and after scaling
    each = branches * mlp_width(config) * run.width + 2 * config.hidden_size * run.residual
    moving = run.batch * run.length * each
    return max(moving, scores(config, run) * (10 if run.autocast else 3 * run.width)) if run.eager else moving


def scores(config: QWenConfig, run: BlockRun) -> int:
    """Return the number of attention scores of one decoder block."""
    return config.num_attention_heads * run.batch * run.length**2


def cache_bytes(config: QWenConfig, width: int) -> int:
    """Return the bytes of the keys and values of one token, in all blocks; width: bytes of a number."""
    return 2 * config.num_hidden_layers * heads_width(config) * width


def vision_bytes(config: QWenConfig, *, images: int, width: int, eager: bool, trained: Collection[str]) -> float:
    """Return the peak bytes of the vision tower: of its graph if a part of it trains, else of one block.

    width: bytes of a number. trained: the parts whose weights train, as `v1.PARTS` names them.
    """
    vision, patches, wide = config.visual, patches_of(config), config.visual["width"]
    block = patches * (8 * wide + 2 * int(wide * vision["mlp_ratio"]))
    if eager:
        block += 2 * vision["heads"] * patches**2
    total = block * (vision["layers"] if VIT_PART in trained else 1)
    if RESAMPLER_PART in trained or VIT_PART in trained:
        total += patches * (wide + 6 * config.hidden_size) + config.image_span_tokens * 6 * config.hidden_size
    return float(width * images * total)
