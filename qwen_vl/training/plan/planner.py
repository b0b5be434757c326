"""`qwen-vl plan`: the memory and time of a training run, estimated from config.json alone."""

import os
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import files
from qwen_vl.families import v1 as family
from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig
from qwen_vl.terminal import markdown_table

from . import memory_model
from .memory_model import Setup, Trained, Weights

METHODS = ("full", "lora", "qlora")
LENGTHS = (384, 512, 1024, 2048)
PUBLISHED_NAME = "Qwen/Qwen-VL-Chat"
GB, GIB = 1e9, 2**30  # results are in GB, like published ones; the memory of a card is in GiB, like vendors'
GPU_FLOPS = 120e12  # half precision: about the published profile of an A100 at 2048 tokens
GPU_BANDWIDTH = 1.5e12  # bytes a second, of an A100


class Machine(NamedTuple):
    """The assumed or measured speed of a processor."""

    flops: float = GPU_FLOPS  # a second, in the blocks of a training step
    bandwidth: float = GPU_BANDWIDTH
    process: float = 0.0  # bytes of a CPU process before it has a model
    source: str = "assumed: an A100 at the pace of its published profile"


class Need(NamedTuple):
    """Memory and time of one way of training, for each GPU."""

    total: float  # bytes
    phase: str
    parts: dict[str, float]  # bytes
    seconds: float  # of an optimizer step


def need(config: QWenConfig, setup: Setup, machine: Machine, weights: Weights) -> Need:
    """Return the Need of a Setup with the Weights of `memory_model.weigh`."""
    phase, parts = memory_model.peak(config, weights, setup)
    if setup.on_cpu:
        parts = parts | {"process": machine.process}
    return Need(sum(parts.values()), phase, parts, seconds(config, weights, setup, machine))


def seconds(config: QWenConfig, weights: Weights, setup: Setup, machine: Machine) -> float:
    """Return the seconds of an optimizer step: all micro-batches, then one pass over weights and states."""
    samples = [setup.length] * setup.batch
    targets = int(setup.targets * sum(samples))
    batch = costs.work(samples, targets=targets, images=setup.batch * setup.images)
    counted = costs.training_operations(config, batch, trained=weights.parts, adapter_parameters=weights.adapters)
    operations: float = sum(counted.values())
    if setup.checkpointing:
        operations += costs.in_blocks(costs.operations(config, batch))
    moved = weights.parameters * (3 * 4 + 2 * memory_model.state_bytes(setup.optim))
    shared = setup.gpus if setup.zero else 1
    return setup.accumulation * operations / machine.flops + moved / shared / machine.bandwidth


def parts_table(found: Need) -> str:
    """Return a Markdown table of the memory of each part at the peak."""
    rows = [(name, f"{size / GB:.2f}") for name, size in found.parts.items() if size >= 0.005 * GB]
    return markdown_table((f"at the peak: {found.phase}", "GB"), [*rows, ("all", f"{found.total / GB:.2f}")])


def lengths_table(config: QWenConfig, asked: Setup, machine: Machine, budget: float | None, trained: Trained) -> str:
    """Return a Markdown table of memory and seconds a step by method and length, marked where beyond the budget."""
    lengths = sorted({*LENGTHS, asked.length})
    rows = []
    for method in METHODS[:2] if asked.on_cpu else METHODS:
        setup, cells = with_method(asked, method), []
        weights = memory_model.weigh(config, setup, trained)
        for length in lengths:
            found = need(config, setup._replace(length=length), machine, weights)
            mark = ", too large" if budget and found.total > budget else ""
            cells.append(f"{found.total / GB:.1f} GB, {found.seconds:.2g} s{mark}")
        rows.append([f"{method}{zero_name(setup)}", *cells])
    return markdown_table(["", *(f"{length} tokens" for length in lengths)], rows)


def with_method(setup: Setup, method: str) -> Setup:
    """Return the Setup with another method; a default ZeRO stage becomes that of the method's launcher."""
    if setup.method == method:
        return setup
    zero = setup.zero if setup.zero is None or setup.gpus == 1 else default_zero(method, setup.gpus)
    return setup._replace(method=method, zero=zero)


def default_zero(method: str, gpus: int) -> int | None:
    """Return the ZeRO stage of the launcher for several GPUs; None for one."""
    if gpus == 1:
        return None
    return 3 if method == "full" else 2


def zero_name(setup: Setup) -> str:
    """Return ", ZeRO-3 with offload" or the like; "" without DeepSpeed."""
    if setup.zero is None:
        return ""
    return f", ZeRO-{setup.zero}" + (" with offload" if setup.offload else "")


def alternatives(asked: Setup) -> Iterator[Setup]:
    """Yield Setups that need less memory than `asked`, the smallest change first."""
    yield asked
    if asked.answers > 1:
        asked = asked._replace(answers=1)
        yield asked
    if not asked.checkpointing:
        asked = asked._replace(checkpointing=True)
        yield asked
    if asked.zero is None and asked.optim == "adamw_torch":
        yield asked._replace(optim="adamw_torch_fused")
    if asked.zero is None and not asked.on_cpu and "8bit" not in asked.optim:
        yield asked._replace(optim="adamw_bnb_8bit")
    stages = [] if asked.on_cpu else [2] if asked.method == "qlora" else [2, 3]
    for stage in stages:
        if asked.gpus > 1 and (asked.zero or 0) < stage:
            yield asked._replace(zero=stage, offload=False)
    for stage in stages:
        if stage >= (asked.zero or 0):
            yield asked._replace(zero=stage, offload=True)
    for method in METHODS[METHODS.index(asked.method) + 1 : 2 if asked.on_cpu else 3]:
        yield with_method(asked._replace(offload=False), method)


def command(setup: Setup, model: str | None, trained: Trained) -> str:
    """Return the launcher's command line for a Setup and a model; None stands for the published one."""
    name = model or PUBLISHED_NAME + ("-Int4" if setup.method == "qlora" else "")
    lora = {"full": "", "lora": "_lora", "qlora": "_qlora"}[setup.method]
    many = setup.gpus > 1 or setup.zero is not None
    words = [f"NPROC={setup.gpus}"] if many else []
    words += ["sh", f"finetune/finetune{lora}_ds.sh" if many else f"finetune/finetune{lora}_single_gpu.sh"]
    words += ["-m", name, "-d", "my_data.json"]
    if setup.zero is not None and (setup.offload or setup.zero != default_zero(setup.method, 2)):
        words += ["--deepspeed", f"configs/deepspeed/zero{setup.zero}{'_offload' if setup.offload else ''}.json"]
    for flag, value, usual in (
        ("model_max_length", setup.length, 2048),
        ("per_device_train_batch_size", setup.batch, 1),
        ("gradient_accumulation_steps", setup.accumulation, 8),
        ("gradient_checkpointing", setup.checkpointing, True),
        ("attn_implementation", setup.attention, "sdpa"),
        ("optim", setup.optim, "adamw_torch_fused"),
        ("use_cpu", setup.on_cpu, False),
    ):
        if value != usual:
            words += [f"--{flag}", str(value)]
    if setup.method == "full" and not trained.fix_vit:
        words += ["--fix_vit", "False"]
    if setup.method != "full" and trained.lora.r != LoraOptions().r:
        words += ["--lora_r", str(trained.lora.r)]
    if setup.method == "lora" and trained.base_model:
        words += ["--modules_to_save", *family.WHOLE_ON_A_BASE]
    if setup.answers:
        words += ["--eval_data_path", "held_out.json", "--eval_strategy", "epoch", "--eval_generate", "True"]
        words += ["--eval_generate_batch_size", str(setup.answers)]
        words += ["--eval_generate_max_new_tokens", str(setup.new_tokens)]
    return shlex.join(words)


def report(
    config: QWenConfig,
    asked: Setup,
    machine: Machine,
    budget: float | None,
    model: str | None,
    trained: Trained,
) -> str:
    """Return the plan as Markdown. budget: bytes of a GPU."""
    found = need(config, asked, machine, memory_model.weigh(config, asked, trained))
    where = "process" if asked.on_cpu else "GPU"
    lines = [
        f"{model or PUBLISHED_NAME}, {asked.method}{zero_name(asked)}, {asked.length} tokens, "
        f"batch {asked.batch} x {asked.accumulation} on {asked.gpus} {where}: **{found.total / GB:.1f} GB** "
        f"({found.total / GIB:.1f} GiB) of each {where}, {found.seconds:.2g} s a step.",
        f"Pace {machine.flops / 1e12:.3g} TFLOP/s, {machine.source}.",
        "",
        parts_table(found),
        "",
        lengths_table(config, asked, machine, budget, trained),
        "",
    ]
    if budget is None or found.total <= budget:
        fits = "" if budget is None else f"It fits {budget / GIB:g} GiB ({budget / GB:.1f} GB). "
        return "\n".join([*lines, f"{fits}The command:", "", f"    {command(asked, model, trained)}"])
    lines.append(f"It does not fit {budget / GIB:g} GiB ({budget / GB:.1f} GB).")
    for other in alternatives(asked):
        smaller = need(config, other, machine, memory_model.weigh(config, other, trained))
        if smaller.total <= budget:
            lines += [f"This does, in {smaller.total / GB:.1f} GB:", "", f"    {command(other, model, trained)}"]
            return "\n".join(lines)
    lines.append("Nothing here does: a shorter --max_length, more GPUs with ZeRO-3, or larger ones are needed.")
    return "\n".join(lines)


def check(setup: Setup) -> None:
    """Raise ValueError if settings contradict each other."""
    if setup.offload and setup.zero not in (2, 3):
        raise ValueError("--offload: DeepSpeed offloads in stages 2 and 3; add --zero 2 or --zero 3")
    if setup.on_cpu and (setup.zero is not None or setup.gpus > 1):
        raise ValueError("--cpu plans one process; leave out --gpus, --zero and --offload")
    if setup.on_cpu and setup.method == "qlora":
        raise ValueError("--cpu --method qlora: not planned for; Q-LoRA is for GPUs")
    if setup.method == "qlora" and setup.zero == 3:
        raise ValueError("--method qlora --zero 3: quantized weights cannot be divided; use --zero 2 (docs/lora.md)")
    if not 0 < setup.targets <= 1:
        raise ValueError(f"--targets {setup.targets}: a share between 0 and 1")


def is_base(path: str) -> bool:
    """Return whether LoRA on this checkpoint trains embeddings and head too; the rule of `build.whole_modules`."""
    return not family.is_chat(files.read_json(path, "generation_config.json") or {})


def assumed(on_cpu: bool) -> Machine:
    """Return the Machine of a plan without --probe."""
    if not on_cpu:
        return Machine()
    pace = (os.cpu_count() or 1) * 30e9
    return Machine(pace, 10e9, memory_model.PROCESS, "assumed: 30 GFLOP/s a core; --probe measures")


def probed(config: QWenConfig, on_cpu: bool) -> Machine:
    """Return this Machine, measured."""
    from . import hardware_probe

    return Machine(*hardware_probe.probe(config, on_cpu=on_cpu))
