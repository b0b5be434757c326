"""Optimizer groups: the learning rate and decay of each parameter, and the table printed before the first step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from qwen_vl.adapters.build import without_wrappers
from qwen_vl.checkpoint.quantization import quantized_linears
from qwen_vl.families import v1 as family
from qwen_vl.terminal import text_table


class Row(NamedTuple):
    """A row of the table: a part of the model and how it trains."""

    part: str
    trainable: int
    total: int
    learning_rate: float | None
    weight_decay: float | None
    group: str


class Rates(NamedTuple):
    """Learning rates: the general one, those of parts, and the factor of LoRA+ for the B side."""

    everything: float
    vision: float | None = None
    resampler: float | None = None
    lora: float | None = None
    loraplus_ratio: float | None = None

    def of(self, name: str, parameter: torch.Tensor) -> float:
        """Return the rate of a trainable parameter; the rate of its part precedes that of its kind."""
        rate = {family.VIT_PART: self.vision, family.RESAMPLER_PART: self.resampler}.get(part_of(name))
        if rate is None:
            rate = self.everything if self.lora is None or ".lora_" not in name else self.lora
        return rate * self.loraplus_ratio if self.loraplus_ratio and is_b_side(name, parameter) else rate

    def unused(self, names: list[str]) -> list[str]:
        """Return the flags whose rate applies to no parameter among `names`."""
        parts, kinds = {part_of(name) for name in names}, {".lora_" in name for name in names}
        flags = {
            "--vision_lr": (self.vision, family.VIT_PART in parts),
            "--resampler_lr": (self.resampler, family.RESAMPLER_PART in parts),
        }
        flags["--lora_lr"] = (self.lora, True in kinds)
        return [flag for flag, (rate, is_used) in flags.items() if rate is not None and not is_used]


def is_b_side(name: str, parameter: torch.Tensor) -> bool:
    """Return whether LoRA+ gives a parameter its higher rate: B, and DoRA's magnitudes (Hayou et al., 2024)."""
    return ".lora_" in name and ("lora_B" in name or "lora_embedding_B" in name or parameter.dim() == 1)


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to; an adapter belongs to the part it changes."""
    return family.part_of(without_wrappers(name))


def label_of(name: str) -> str:
    """Return the label of a parameter's row in the table: its part, after "lora on" or "new rows of" for an adapter."""
    kind = "lora on " if ".lora_" in name else "new rows of " if ".trainable_tokens_" in name else ""
    return kind + part_of(name)


def shape_of(parameter: torch.Tensor) -> torch.Size:
    """Return the full shape of a parameter, even if this rank holds only a part of it (DeepSpeed ZeRO-3)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Return whether weight decay applies to a parameter; norms, biases, queries and tables have none."""
    return family.decays(without_wrappers(name), len(shape_of(parameter)))


def decayed_names(model: nn.Module) -> list[str]:
    """Return the names of all parameters that weight decay applies to."""
    return [name for name, parameter in model.named_parameters() if decays(name, parameter)]


def rows(model: nn.Module, *, rates: Rates, weight_decay: float) -> list[Row]:
    """Return the rows of the table: one for each part, learning rate and decay, frozen parts included.

    Raise ValueError if nothing trains, or if one of the `rates` applies to nothing.
    """
    counted: dict[tuple[str, float | None, str], int] = {}
    for name, parameter, count in weights(model):
        key: tuple[str, float | None, str] = (label_of(name), None, "frozen")
        if parameter.requires_grad:
            key = (label_of(name), rates.of(name, parameter), "decay" if decays(name, parameter) else "no decay")
        counted[key] = counted.get(key, 0) + count
    lines = []
    for (label, rate, group), count in counted.items():
        decay = None if rate is None else weight_decay if group == "decay" else 0.0
        lines.append(Row(label, 0 if rate is None else count, count, rate, decay, group))
    if not any(line.trainable for line in lines):
        raise ValueError("nothing trains: every parameter is frozen; check --fix_vit and --lora_target_modules")
    unused = rates.unused([name for name, parameter, _ in weights(model) if parameter.requires_grad])
    if unused:
        raise ValueError(f"{', '.join(unused)}: nothing of that part trains in this run; leave it out or let it train")
    return lines


def weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yield (name, tensor, number of weights in it) of all parameters and of the packed layers of a GPTQ model."""
    for name, parameter in model.named_parameters():
        packed = type(parameter).__name__ == "Params4bit" and parameter.shape[-1] == 1  # two weights a byte
        yield name, parameter, shape_of(parameter).numel() * (2 if packed else 1)
    packed_layers: dict[str, Any] = quantized_linears(model)  # of classes of gptqmodel, which declare no types
    for path, layer in packed_layers.items():
        yield f"{path}.qweight", layer.qweight, layer.in_features * layer.out_features


def table(lines: list[Row]) -> str:
    """Return the rows as an aligned text table that ends with totals."""
    cells = [("part", "trains", "parameters", "learning rate", "weight decay", "group")]
    for line in lines:
        rate = "-" if line.learning_rate is None else f"{line.learning_rate:g}"
        decay = "-" if line.weight_decay is None else f"{line.weight_decay:g}"
        cells.append((line.part, "yes" if line.trainable else "no", f"{line.total:,}", rate, decay, line.group))
    trainable, total = sum(line.trainable for line in lines), sum(line.total for line in lines)
    cells.append(("all", f"{100 * trainable / total:.2f}%", f"{trainable:,} of {total:,}", "", "", ""))
    return "\n".join(text_table(cells))


def split_groups(optimizer: Optimizer, model: nn.Module, rates: Rates) -> None:
    """Split the groups of a new `optimizer` by learning rate."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.of(names[id(parameter)], parameter), []).append(parameter)
        for rate, parameters in by_rate.items():
            before = group["lr"]  # torchao's optimizers keep it in a tensor, which each group needs for itself
            own = torch.full_like(before, rate) if isinstance(before, torch.Tensor) else rate
            groups.append(group | {"params": parameters, "lr": own})
    optimizer.param_groups[:] = groups


def check_groups(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise ValueError if a trainable parameter is in no optimizer group."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lost = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in held
    ]
    if lost:
        raise ValueError(f"{len(lost)} trainable parameters are in no optimizer group, the first is {lost[0]}")
