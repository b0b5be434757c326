"""What trains: freezing, adapters, optimizer groups, and the table that is shown before the first step."""

from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from torch import nn

from .quantization import quiet_gptqmodel

UNDECAYED_LEAVES = {"query", "pos_embed", "positional_embedding"}  # learned queries and position tables
PARTS = (  # first match wins; names as in the checkpoint
    ("resampler", "visual.attn_pool."),
    ("vit", "visual."),
    ("embeddings", "wte."),
    ("lm_head", "lm_head."),
    ("decoder", ""),
)


class Row(NamedTuple):
    """One line of the table: a part of the model and how it trains."""

    part: str
    trainable: int
    total: int
    learning_rate: float | None
    weight_decay: float | None
    group: str


def freeze_for_full(model, *, fix_vit):
    """The model with everything trainable but, if `fix_vit`, the vision tower without its resampler (SPEC section 7).

    The resampler's position table never trains.
    """
    model.requires_grad_(True)
    visual = model.transformer.visual
    if fix_vit:
        visual.requires_grad_(False)
        visual.attn_pool.requires_grad_(True)
    return freeze_fixed_table(model)


def freeze_fixed_table(model):
    """The model with the resampler's position table frozen, wherever adapters may have put a copy of it."""
    for name, parameter in model.named_parameters():
        if name.endswith("attn_pool.pos_embed"):
            parameter.requires_grad_(False)
    return model


def whole_modules(model, requested=None):
    """Names of the modules that train whole beside adapters: as requested, else wte and lm_head on a base model.

    A base model, told by its generation_config.chat_format, has never seen the ChatML markers (SPEC section 7).
    """
    if requested:
        return None if requested == ["none"] else list(requested)
    chats = model.generation_config.to_dict().get("chat_format") == "chatml"
    return None if chats else ["wte", "lm_head"]


def add_adapters(model, *, r, alpha, dropout, targets, bias, modules_to_save):
    """A PeftModel with new LoRA adapters; ValueError for a target or a module that is not in the model."""
    check_matches(model, "--lora_target_modules", targets, (nn.Linear, nn.Embedding, nn.Conv2d))
    check_matches(model, "--modules_to_save", modules_to_save or [], nn.Module)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias=bias,
        modules_to_save=modules_to_save,
    )
    quiet_gptqmodel()  # which peft imports for any adapter
    return settle(get_peft_model(model, config))


def load_adapters(model, adapter_dir, *, trainable=False):
    """A PeftModel with the adapter of a folder; ValueError where it does not fit the model or is damaged."""
    quiet_gptqmodel()  # which peft imports for any adapter
    try:
        model = PeftModel.from_pretrained(model, adapter_dir, is_trainable=trainable)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{adapter_dir}: the adapter is damaged or does not fit the model: {error}") from error
    return settle(model) if trainable else model


def settle(model):
    """A trainable PeftModel in which what trains is corrected where PEFT's rules do not fit this model."""
    if model.peft_config["default"].bias == "all":  # PEFT sees only parameters that are called `bias`
        for name, parameter in model.named_parameters():
            if name.endswith("in_proj_bias") and ".original_module." not in name:
                parameter.requires_grad_(True)
    return freeze_fixed_table(model)


def check_matches(model, flag, names, kinds):
    """None, or a ValueError with each entry that is the end of no path to a module of these kinds."""
    paths = [path for path, module in model.named_modules() if isinstance(module, kinds)]
    lost = [name for name in names if not any(path == name or path.endswith("." + name) for path in paths)]
    if lost:
        ends = sorted({path.rpartition(".")[2] for path in paths} - {""})
        raise ValueError(f"{flag} {' '.join(lost)}: matches nothing in the model; modules end in {', '.join(ends)}")


def train_in_float32(model):
    """The model with its trainable weights in float32, so that small updates are not rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def part_of(name):
    """The part of the model that a parameter belongs to; adapters count with the part that they sit in."""
    prefix = "lora on " if ".lora_" in name else ""
    bare = without_wrappers(name).removeprefix("transformer.")
    return prefix + next(part for part, start in PARTS if bare.startswith(start))


def shape_of(parameter):
    """The shape of a parameter, also where a process holds only a part of it (DeepSpeed ZeRO-3)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def decays(name, parameter):
    """Whether weight decay applies: not to norms, biases, queries and tables."""
    return len(shape_of(parameter)) > 1 and without_wrappers(name).rpartition(".")[2] not in UNDECAYED_LEAVES


def without_wrappers(name):
    """The name that a parameter has in the model without adapters."""
    for wrapper in ("base_model.model.", ".modules_to_save.default", ".original_module"):
        name = name.replace(wrapper, "")
    return name


def decayed_names(model):
    """Names of all parameters that weight decay applies to."""
    return [name for name, parameter in model.named_parameters() if decays(name, parameter)]


def rows(model, *, learning_rate, weight_decay):
    """The table's lines: one for each part and optimizer group, frozen parts included."""
    counted = {}
    for name, parameter in model.named_parameters():
        group = "frozen" if not parameter.requires_grad else "decay" if decays(name, parameter) else "no decay"
        counted[part_of(name), group] = counted.get((part_of(name), group), 0) + shape_of(parameter).numel()
    lines = []
    for (part, group), count in counted.items():
        trains = group != "frozen"
        decay = None if not trains else weight_decay if group == "decay" else 0.0
        lines.append(Row(part, count if trains else 0, count, learning_rate if trains else None, decay, group))
    if not any(line.trainable for line in lines):
        raise ValueError("nothing trains: every parameter is frozen; check --fix_vit and --lora_target_modules")
    return lines


def table(lines):
    """The rows as text, widths aligned, with a last line of totals."""
    cells = [("part", "trains", "parameters", "learning rate", "weight decay", "group")]
    for line in lines:
        rate = "-" if line.learning_rate is None else f"{line.learning_rate:g}"
        decay = "-" if line.weight_decay is None else f"{line.weight_decay:g}"
        cells.append((line.part, "yes" if line.trainable else "no", f"{line.total:,}", rate, decay, line.group))
    trainable, total = sum(line.trainable for line in lines), sum(line.total for line in lines)
    cells.append(("all", f"{100 * trainable / total:.2f}%", f"{trainable:,} of {total:,}", "", "", ""))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def check_groups(model, optimizer):
    """None, or a ValueError naming trainable parameters that no optimizer group holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lost = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in held
    ]
    if lost:
        raise ValueError(f"{len(lost)} trainable parameters are in no optimizer group, the first is {lost[0]}")


def compute_dtype(*, bf16, fp16):
    """The dtype that frozen weights are kept in: what the flags ask for, else float32."""
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32
