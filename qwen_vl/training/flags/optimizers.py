"""Choice and checks of a run's optimizer and schedule."""

import json
import re
from argparse import Namespace
from importlib.util import find_spec
from math import inf

import torch
from transformers import SchedulerType, get_scheduler

AUTO = "auto"
# transformers' names of bitsandbytes' optimizers; `paged_*` move their state to the host when memory runs out.
OF_BITSANDBYTES = (
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)


def resolve(name: str, *, deepspeed: str | None, fsdp: bool | str | list | None) -> str:
    """Return the name of the optimizer for --optim; auto is fused AdamW if the engine supports it.

    The fused kernel is about four times as fast as the loop over parameters, on a CPU as well. DeepSpeed has its own
    copies of the parameters and would compile a kernel for the name; FSDP's sharded tensors have no fused one on a CPU.
    """
    if name != AUTO:
        return name
    return "adamw_torch" if deepspeed or (fsdp and not torch.accelerator.is_available()) else "adamw_torch_fused"


def check(settings: Namespace) -> list[str]:
    """Return a line for each reason why the optimizer or the schedule of the flags cannot work."""
    problems = check_optimizer(settings) + check_schedule(settings)
    if wrong := [part for part in (settings.optim_args or "").split(",") if part.strip() and part.count("=") != 1]:
        problems.append(f"--optim_args {', '.join(wrong)}: write name=value, and commas between several")
    return problems


def check_schedule(settings: Namespace) -> list[str]:
    """Return a line if building the schedule or AdamW with the settings of the flags fails."""
    options, name = settings.lr_scheduler_kwargs, str(settings.lr_scheduler_type)
    try:
        options = json.loads(options) if isinstance(options, str) else options
    except ValueError as error:
        return [f"--lr_scheduler_kwargs {options}: not JSON ({error})"]
    if options is not None and not isinstance(options, dict):
        return [f'--lr_scheduler_kwargs {options}: write an object, such as {{"min_lr": 1e-6}}']
    if name not in list(SchedulerType):
        return []  # the message lists transformers' own names
    try:
        betas = settings.adam_beta1, settings.adam_beta2
        rate = settings.learning_rate if 0 < settings.learning_rate < inf else 1.0  # `checks` names a wrong one
        one_weight = torch.optim.AdamW([torch.zeros(1)], rate, betas, settings.adam_epsilon)
    except ValueError as error:
        return [f"--adam_beta1, --adam_beta2, --adam_epsilon: {error}"]
    try:
        get_scheduler(name, one_weight, 1, 10, scheduler_specific_kwargs=options)
    except (TypeError, ValueError) as error:
        said = re.sub(r"^\w+\(\) ", "", str(error))  # the name of a function in transformers
        return [f"--lr_scheduler_type {name}: {said}; see --lr_scheduler_kwargs"]
    return []


def check_optimizer(settings: Namespace) -> list[str]:
    """Return a line for each reason why the optimizer of the flags cannot work."""
    name = str(settings.optim)
    if name not in OF_BITSANDBYTES and not name.startswith("paged_"):
        return []
    problems = []
    if find_spec("bitsandbytes") is None:
        problems.append(f'--optim {name} needs bitsandbytes: pip install "qwen-vl[quant]"')
    if settings.deepspeed or settings.fsdp:
        engine = "--deepspeed" if settings.deepspeed else "--fsdp"
        problems.append(
            f"--optim {name}: bitsandbytes keeps its state where {engine} cannot shard it; leave the flag out, as "
            f"{engine} divides the state over the ranks anyway"
        )
    if name.startswith("paged_") and (settings.use_cpu or settings.no_cuda or not torch.accelerator.is_available()):
        problems.append(f"--optim {name} moves its state between GPU and host, and there is no GPU; use adamw_bnb_8bit")
    return problems
