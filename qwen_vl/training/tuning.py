"""What trains: freezing, adapters, optimizer groups, and the table that is shown before the first step."""

from typing import NamedTuple

import torch
from peft import LoraConfig, NoMatchingPeftModuleError, PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError

from qwen_vl.families import v1 as family
from qwen_vl.terminal import text_table

from . import adapters
from .quantization import quantized_linears, quiet_gptqmodel


class Row(NamedTuple):
    """One line of the table: a part of the model and how it trains."""

    part: str
    trainable: int
    total: int
    learning_rate: float | None
    weight_decay: float | None
    group: str


def freeze_for_full(model, *, fix_vit):
    """The model with everything trainable but, if `fix_vit`, the vision tower without its resampler.

    The resampler's position table never trains. Source: docs/checkpoint_format.md section 7.
    """
    model.requires_grad_(True)
    if fix_vit:
        family.tower(model).requires_grad_(False)
        family.resampler(model).requires_grad_(True)
    return freeze_fixed_table(model)


def freeze_fixed_table(model):
    """The model with the resampler's position table frozen, wherever adapters may have put a copy of it."""
    for name, parameter in model.named_parameters():
        if without_wrappers(name).endswith(family.FIXED_TABLE):
            parameter.requires_grad_(False)
    return model


def whole_modules(model, requested=None):
    """Names of the modules that train whole beside adapters: as requested, else wte and lm_head on a base model.

    A base model, told by its generation_config.chat_format, has never seen the ChatML markers
    (docs/checkpoint_format.md section 7).
    """
    if requested:
        return None if requested == ["none"] else list(requested)
    return None if family.is_chat(model.generation_config.to_dict()) else list(family.WHOLE_ON_A_BASE)


def add_adapters(model, *, r, alpha, dropout, targets, bias, modules_to_save, new_tokens=(), **variant):
    """A PeftModel with new LoRA adapters; ValueError for a target or a module that is not in the model.

    targets: names or words (`adapters.target_modules`). new_tokens: ids whose rows of the embeddings and of lm_head
    train. variant: fields of PEFT's LoraConfig that choose one, such as use_rslora, use_dora, init_lora_weights.
    """
    adapters.check_names(model, targets, modules_to_save or ())
    rows = adapters.trained_rows(new_tokens, modules_to_save or ())
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=adapters.target_modules(model, targets),
        bias=bias,
        modules_to_save=adapters.modules_to_save(model, modules_to_save),
        trainable_token_indices=rows or None,
        **variant,
    )
    quiet_gptqmodel()  # which peft imports for any adapter
    try:
        return settle(get_peft_model(model, config))
    except NoMatchingPeftModuleError as error:
        raise ValueError(
            f"--lora_target_modules {' '.join(targets)}: all of them lie in what trains whole (--modules_to_save "
            f"{' '.join(modules_to_save or ())}), so that nothing is left for adapters; choose other targets, or train "
            "without --use_lora"
        ) from error


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
            if name.endswith(family.HIDDEN_BIASES) and ".original_module." not in name:
                parameter.requires_grad_(True)
    return freeze_fixed_table(model)


def train_in_float32(model):
    """The model with its trainable weights in float32, so that small updates are not rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def train_in(model, dtype):
    """The model with its trainable weights in one `dtype`, as DeepSpeed ZeRO-3 needs them; PEFT makes some float32."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
            if hasattr(parameter, "ds_tensor"):  # this process's share of it
                parameter.ds_tensor.data = parameter.ds_tensor.data.to(dtype)
    return model


class Rates(NamedTuple):
    """Learning rates: of everything, of the parts that have their own, and how much faster LoRA+ trains the B side."""

    everything: float
    vision: float | None = None
    resampler: float | None = None
    lora: float | None = None
    loraplus_ratio: float | None = None

    def of(self, name, parameter):
        """The rate of a trainable parameter: a rate of its part goes before one of its kind."""
        rate = {family.VIT_PART: self.vision, family.RESAMPLER_PART: self.resampler}.get(place_of(name))
        if rate is None:
            rate = self.everything if self.lora is None or ".lora_" not in name else self.lora
        return rate * self.loraplus_ratio if self.loraplus_ratio and is_b_side(name, parameter) else rate

    def unused(self, names):
        """The flags whose rate no parameter among `names` has."""
        places, kinds = {place_of(name) for name in names}, {".lora_" in name for name in names}
        flags = {
            "--vision_lr": (self.vision, family.VIT_PART in places),
            "--resampler_lr": (self.resampler, family.RESAMPLER_PART in places),
        }
        flags["--lora_lr"] = (self.lora, True in kinds)
        return [flag for flag, (rate, is_used) in flags.items() if rate is not None and not is_used]


def is_b_side(name, parameter):
    """Whether LoRA+ gives a parameter its higher rate: B of an adapter, and DoRA's magnitudes (Hayou et al., 2024)."""
    return ".lora_" in name and ("lora_B" in name or "lora_embedding_B" in name or parameter.dim() == 1)


def part_of(name):
    """The part of the model that a parameter belongs to, as the table names it."""
    kind = "lora on " if ".lora_" in name else "new rows of " if ".trainable_tokens_" in name else ""
    return kind + place_of(name)


def place_of(name):
    """The part of the model that a parameter belongs to; adapters count with the part that they sit in."""
    return family.part_of(without_wrappers(name))


def shape_of(parameter):
    """The shape of a parameter, also where a process holds only a part of it (DeepSpeed ZeRO-3)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def decays(name, parameter):
    """Whether weight decay applies: not to norms, biases, queries and tables."""
    return family.decays(without_wrappers(name), len(shape_of(parameter)))


def without_wrappers(name):
    """The name that a parameter has in the model without adapters."""
    for wrapper in ("base_model.model.", ".modules_to_save.default", ".original_module"):
        name = name.replace(wrapper, "")
    return name


def decayed_names(model):
    """Names of all parameters that weight decay applies to."""
    return [name for name, parameter in model.named_parameters() if decays(name, parameter)]


def rows(model, *, rates, weight_decay):
    """The table's lines: one for each part, learning rate and decay, frozen parts included.

    Raises ValueError when nothing trains, or nothing that a rate of `rates` is meant for.
    """
    counted = {}
    for name, parameter, count in weights(model):
        key = (part_of(name), None, "frozen")
        if parameter.requires_grad:
            key = (part_of(name), rates.of(name, parameter), "decay" if decays(name, parameter) else "no decay")
        counted[key] = counted.get(key, 0) + count
    lines = []
    for (part, rate, group), count in counted.items():
        decay = None if rate is None else weight_decay if group == "decay" else 0.0
        lines.append(Row(part, 0 if rate is None else count, count, rate, decay, group))
    if not any(line.trainable for line in lines):
        raise ValueError("nothing trains: every parameter is frozen; check --fix_vit and --lora_target_modules")
    unused = rates.unused([name for name, parameter, _ in weights(model) if parameter.requires_grad])
    if unused:
        raise ValueError(f"{', '.join(unused)}: nothing of that part trains in this run; leave it out or let it train")
    return lines


def weights(model):
    """Yields (name, tensor, number of weights it stands for): all parameters, and the packed layers of a GPTQ model."""
    for name, parameter in model.named_parameters():
        packed = type(parameter).__name__ == "Params4bit" and parameter.shape[-1] == 1  # two weights a byte
        yield name, parameter, shape_of(parameter).numel() * (2 if packed else 1)
    for path, layer in quantized_linears(model).items():
        yield f"{path}.qweight", layer.qweight, layer.in_features * layer.out_features


def table(lines):
    """The rows as text, widths aligned, with a last line of totals."""
    cells = [("part", "trains", "parameters", "learning rate", "weight decay", "group")]
    for line in lines:
        rate = "-" if line.learning_rate is None else f"{line.learning_rate:g}"
        decay = "-" if line.weight_decay is None else f"{line.weight_decay:g}"
        cells.append((line.part, "yes" if line.trainable else "no", f"{line.total:,}", rate, decay, line.group))
    trainable, total = sum(line.trainable for line in lines), sum(line.total for line in lines)
    cells.append(("all", f"{100 * trainable / total:.2f}%", f"{trainable:,} of {total:,}", "", "", ""))
    return "\n".join(text_table(cells))


def split_groups(optimizer, model, rates):
    """None; afterwards the parameters of each group of a new `optimizer` that have a rate of their own stand apart."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        by_rate = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.of(names[id(parameter)], parameter), []).append(parameter)
        groups += [group | {"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    optimizer.param_groups[:] = groups


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
