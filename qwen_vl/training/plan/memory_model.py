"""Memory model of a training run, part by part, from the configuration alone.

Sizes of weights come from the model itself, built on the meta device and prepared by the same functions of `tuning` as
the real one. `families` counts the activations of a block.
A run passes through phases; the peak is the largest of them. docs/plan.md explains the assumptions and compares results
with measurements. GB are 10**9 bytes.
"""

import json
from functools import lru_cache
from typing import NamedTuple

import torch

from qwen_vl.adapters import build
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.families import v1 as family
from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.loss_qwen import CHUNK_BYTES
from qwen_vl.training import param_groups, tuning

CONTEXT = 1.0e9  # of CUDA, cuBLAS and cuDNN in a process: an A100 shows 0.8 to 1.2 GB before the first tensor
PROCESS = 0.65e9  # of a CPU process that has imported everything and holds no model
COMMUNICATOR = 0.3e9  # of NCCL, where torch.distributed runs
FRAGMENTATION = 0.15  # of temporary memory: what the caching allocator holds and cannot use
HEAP = 0.25  # the same for the C library on a CPU, which keeps freed memory (`host_memory`)
KEYS = "keys and values of answers"
PASSING = ("vision tower", "activations", "logits", "optimizer step", KEYS, "answering")  # temporary parts
OVERLAP = 4.5  # times both buckets, for `overlap_comm`, by DeepSpeed's documentation
GPTQ_BITS, GPTQ_GROUP = 4, 128
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight; a byte scales 64, and a float32 256 of those bytes
AUTOCAST_PARTS = (family.DECODER_PART, family.HEAD_PART)  # parts whose matrices autocast copies


class Weights(NamedTuple):
    """Bytes and numbers of the parameters of a model that is ready to train."""

    frozen: float  # bytes
    trained: int  # bytes, without DeepSpeed's master copies
    quantized: float  # bytes, of `frozen`
    parameters: int  # trained ones
    largest: int  # trained parameters in the largest tensor
    matrices: int  # trained parameters that are float32 matrices of the decoder and the head, without adapters
    one_dtype: int  # bytes of the trained weights of the most common dtype
    adapters: int  # parameters of LoRA
    parts: tuple[str, ...]  # that train, by their names in `v1.PARTS`


class Setup(NamedTuple):
    """How a run trains: everything but the model that its memory depends on."""

    method: str = "lora"  # full, lora, qlora
    packing: str = "gptq"  # of the weights under Q-LoRA: gptq, nf4 or int8
    length: int = 2048  # tokens of a sample
    batch: int = 1
    accumulation: int = 8
    images: int = 1  # of a sample
    targets: float = 0.25  # share of the tokens that are learned
    half: bool = True  # bf16 or fp16; else float32
    checkpointing: bool = True
    attention: str = "sdpa"
    optim: str = "adamw_torch_fused"
    zero: int | None = None  # DeepSpeed stage; None without DeepSpeed
    gpus: int = 1
    offload: bool = False
    on_cpu: bool = False
    answers: int = 0  # that --eval_generate generates at a time; 0 without it
    new_tokens: int = 256  # most tokens of an answer


class Trained(NamedTuple):
    """What trains, apart from the method."""

    base_model: bool = False  # LoRA trains copies of embeddings and head
    fix_vit: bool = True
    lora: LoraOptions = LoraOptions()


DEFAULT = Trained()


def weigh(config: QWenConfig, setup: Setup, trained: Trained = DEFAULT) -> Weights:
    """Return the Weights of a model with this config, prepared as in a run."""
    return _weighed(config.to_json_string(), setup.method, setup.packing, setup.half, trained)


@lru_cache(maxsize=32)
def _weighed(settings: str, method: str, packing: str, half: bool, trained: Trained) -> Weights:
    """Return the result of `weigh`, by hashable values."""
    model = prepared(QWenConfig(**json.loads(settings)), method, half=half, trained=trained)
    return weights_of(tuning.train_in_float32(model), method, packing)


def prepared(config: QWenConfig, method: str, *, half: bool, trained: Trained = DEFAULT) -> torch.nn.Module:
    """Return a model on the meta device, frozen and with adapters as in a run, in the dtype of frozen weights."""
    dtype = (torch.float16 if method == "qlora" else torch.bfloat16) if half else torch.float32
    with torch.device("meta"):
        model = QWenLMHeadModel(config).to(dtype)
        if method == "full":
            return tuning.freeze_for_full(model, fix_vit=trained.fix_vit)
        whole = family.WHOLE_ON_A_BASE if trained.base_model and method == "lora" else None
        return build.add_adapters(model, trained.lora._replace(modules_to_save=whole))


def weights_of(model: torch.nn.Module, method: str, packing: str) -> Weights:
    """Return the Weights of a `prepared` model; under Q-LoRA the linears of its blocks are packed."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen: float = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    quantized = 0.0
    if method == "qlora":
        linears = [m for name, m in family.block_linears(model) if ".lora_" not in name]
        quantized = sum(packed_bytes(packing, m) for m in linears)
        frozen += quantized - sum(m.weight.nbytes + (0 if m.bias is None else m.bias.nbytes) for m in linears)
    by_dtype: dict[torch.dtype, int] = {}
    for p in trained.values():
        by_dtype[p.dtype] = by_dtype.get(p.dtype, 0) + p.nbytes
    labels = {param_groups.label_of(name) for name in trained}
    return Weights(
        frozen=frozen,
        trained=sum(p.nbytes for p in trained.values()),
        quantized=quantized,
        parameters=sum(p.numel() for p in trained.values()),
        largest=max(p.numel() for p in trained.values()),
        matrices=sum(
            p.numel()
            for name, p in trained.items()
            if p.dtype == torch.float32 and p.dim() == 2 and param_groups.label_of(name) in AUTOCAST_PARTS
        ),
        one_dtype=max(by_dtype.values()),
        adapters=sum(p.numel() for name, p in trained.items() if ".lora_" in name),
        parts=tuple(sorted(label for label in labels if not label.startswith("lora on "))),
    )


def packed_bytes(packing: str, linear: torch.nn.Linear) -> float:
    """Return the bytes of a quantized linear, bias included, in the layout of AutoGPTQ or bitsandbytes."""
    rows, columns = linear.weight.shape
    bias = 0 if linear.bias is None else linear.bias.nbytes
    if packing == "nf4":
        return rows * columns * NF4_BYTES + bias
    if packing == "int8":
        return rows * (columns + 4) + bias
    groups = -(-columns // GPTQ_GROUP)  # scales and zero points by group, an index of groups, and always a bias
    return rows * columns * GPTQ_BITS // 8 + groups * rows * (2 + GPTQ_BITS / 8) + 4 * columns + 2 * rows


def phases(config: QWenConfig, weights: Weights, setup: Setup) -> dict[str, dict[str, float]]:
    """Return {phase: {part: bytes}} of one process (one GPU) at the peak of each phase."""
    fixed = standing(config, weights, setup)
    kept, working = activations(config, weights, setup)
    logits = loss_bytes(config, setup)
    held = working if setup.on_cpu else 0.0  # the C library keeps the memory of small tensors
    first = setup.accumulation == 1 and setup.zero is None  # the last step's gradients are freed
    without = fixed | {"gradients": 0.0} if first else fixed
    stages = {
        "vision tower": without | {"vision tower": vision_bytes(config, weights, setup)},
        "loss": without | {"activations": kept + held, "logits": logits},
        "backward": fixed | {"activations": kept * (0 if first and not setup.checkpointing else 1) + working},
        "optimizer step": fixed | {"optimizer step": step_bytes(weights, setup)},
    }
    if first and not setup.checkpointing:
        stages["loss"]["gradients"] = weights.largest * 4.0
    if setup.answers:
        freed = fixed if setup.zero is not None else fixed | {"gradients": 0.0}  # an evaluation follows a step
        stages["answering of held-out questions"] = freed | answering(config, weights, setup)
    return {name: with_overhead(parts, setup) for name, parts in stages.items()}


def peak(config: QWenConfig, weights: Weights, setup: Setup) -> tuple[str, dict[str, float]]:
    """Return (phase, {part: bytes}) of the phase that needs most."""
    return max(phases(config, weights, setup).items(), key=lambda item: sum(item[1].values()))


def with_overhead(parts: dict[str, float], setup: Setup) -> dict[str, float]:
    """Return the parts and the overhead of the allocator and the device's context."""
    passing = sum(parts.get(name, 0) for name in PASSING)
    if setup.on_cpu:
        return parts | {"fragmentation": HEAP * passing}
    context = CONTEXT + (COMMUNICATOR if setup.zero is not None or setup.gpus > 1 else 0)
    return parts | {"fragmentation": FRAGMENTATION * passing, "context": context}


def standing(config: QWenConfig, weights: Weights, setup: Setup) -> dict[str, float]:
    """Return {part: bytes} of the permanent memory of one GPU: weights, gradients, optimizer."""
    count, states = weights.parameters, state_bytes(setup.optim)
    if setup.zero is None:
        return {
            "weights": weights.frozen + weights.trained,
            "gradients": float(weights.trained),
            "optimizer": weights.trained * states / 4,
        }
    # DeepSpeed: all weights in half precision; the stage decides which masters, states and gradients are sharded.
    stage, share = setup.zero, 1 / setup.gpus
    width = 2 if setup.half else 4
    held = weights.frozen + count * width
    block = held / config.num_hidden_layers  # ZeRO-3 gathers about two at a time, since it prefetches
    masters = count * (4 + states) * (share if stage >= 1 else 1) * (0 if setup.offload else 1)
    gradients = count * width * (share if stage >= 2 else 1)
    buckets = bucket_bytes(count, config.hidden_size**2, width) if stage == 2 else 0.0
    return {
        "weights": held * share + 2 * block if stage == 3 else held,
        "gradients": gradients + buckets,
        "optimizer": masters,
    }


def bucket_bytes(count: int, bucket: float, width: int) -> float:
    """Return the bytes of DeepSpeed's stage 2: buckets of `bucket` elements for `count` gradients of `width` bytes."""
    return width * min(count, bucket) + OVERLAP * 2 * width * bucket  # gradients wait until their bucket is full


def state_bytes(optim: str) -> int:
    """Return the bytes of optimizer state for each trained float32 parameter."""
    return 2 if "8bit" in optim else 8


def step_bytes(weights: Weights, setup: Setup) -> float:
    """Return the bytes that an optimizer step needs besides gradients and states."""
    if setup.zero is not None or setup.optim != "adamw_torch":
        return 0.0
    if setup.on_cpu:
        return 2 * 4.0 * weights.largest  # tensor by tensor
    return 1.0 * weights.one_dtype  # the root of the second moment, of all tensors of one dtype at once


def activations(config: QWenConfig, weights: Weights, setup: Setup) -> tuple[float, float]:
    """Return (bytes kept from the forward pass, bytes of the block in its backward pass)."""
    width = 2 if setup.half else 4
    residual = 4 if family.EMBEDDINGS_PART in weights.parts else width
    tokens, layers = setup.batch * setup.length, config.num_hidden_layers
    run = block_run(setup, width, residual)
    saved = costs.block_bytes(config, run) * (1.0 if setup.checkpointing else layers)
    moving = costs.moving_bytes(config, run)
    if setup.method == "qlora":
        moving += unpacked_bytes(config)
    copies = 2 * (weights.matrices + weights.adapters) if autocasts(setup) else 0  # kept by autocast
    if setup.checkpointing:
        return tokens * config.hidden_size * residual * layers + copies, saved + moving
    return saved + copies, moving


def unpacked_bytes(config: QWenConfig) -> int:
    """Return the bytes of a block's linears, unpacked in half precision, one of them also as integers."""
    return 2 * costs.block_weights(config) + 7 * costs.largest_linear(config)


def autocasts(setup: Setup) -> bool:
    """Return whether matrix products run under autocast: in half precision, except under DeepSpeed."""
    return setup.half and setup.zero is None


def block_run(setup: Setup, width: int, residual: int) -> costs.BlockRun:
    """Return how a Setup trains a decoder block; width, residual: bytes of a number there and between blocks."""
    return costs.BlockRun(
        batch=setup.batch,
        length=setup.length,
        width=width,
        residual=residual,
        with_adapters=setup.method != "full",
        eager=setup.attention == "eager",
        autocast=autocasts(setup),
        on_cpu=setup.on_cpu,
    )


def answering(config: QWenConfig, weights: Weights, setup: Setup) -> dict[str, float]:
    """Return {part: bytes} at the peak of --eval_generate: all prompts of a batch as long as a sample, then answers."""
    width = 2 if setup.half else 4
    prompts = setup._replace(batch=setup.answers)
    block = costs.moving_bytes(config, block_run(prompts, width, width))
    block += unpacked_bytes(config) if setup.method == "qlora" else 0
    tower = vision_bytes(config, weights._replace(parts=()), prompts)
    copies = 2.0 * (weights.matrices + weights.adapters) if autocasts(setup) else 0.0
    logits = 4.0 * setup.answers * config.vocab_size
    tokens = setup.answers * (setup.length + setup.new_tokens)
    return {KEYS: float(tokens * costs.cache_bytes(config, width)), "answering": max(block, tower) + copies + logits}


def vision_bytes(config: QWenConfig, weights: Weights, setup: Setup) -> float:
    """Return the bytes at the peak of the vision tower."""
    return costs.vision_bytes(
        config,
        images=setup.batch * setup.images,
        width=2 if setup.half else 4,
        eager=setup.attention == "eager",
        trained=weights.parts,
    )


def loss_bytes(config: QWenConfig, setup: Setup) -> float:
    """Return the bytes at the peak of the loss."""
    positions = setup.batch * setup.length
    logits = min(setup.targets * positions * config.vocab_size * 4.0, float(CHUNK_BYTES))
    return logits * (1.5 if setup.half else 1.0)  # plus the half-precision output of lm_head, or its gradient
