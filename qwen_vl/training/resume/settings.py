"""The flags of a resumed run: a changed flag applies, or the checkpoint's value is kept, or it is an error.

The checkpoint's value is kept for flags of the optimizer and the schedule (KEPT), which are in the middle of their
work. A change of the base, the adapters, the precision or the targets is an error (REFUSED, and `check`).
`data_position.check` compares the data. All other changes apply.
"""

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn

from qwen_vl.adapters.adapter import Base
from qwen_vl.checkpoint.files import ADAPTER_BASE, ADAPTER_CONFIG, read_json_or_none
from qwen_vl.training.monitor import run_record

from . import checkpoints
from .checkpoints import RunCheckpoint

logger = logging.getLogger(__name__)

KEPT = (
    *("learning_rate", "vision_lr", "resampler_lr", "lora_lr", "loraplus_lr_ratio"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "max_grad_norm", "neftune_noise_alpha"),
)
REFUSED = (
    "fix_vit",
    "optim",
    "loss_on",
    "init_lora_weights",
    "new_special_tokens",
)  # besides those that `check` compares with the files of the checkpoint
WITH_DATA = ("loss_on",)  # those of REFUSED that may change if the data start anew
ADAPTER_FLAGS = {  # field of an adapter's config: the flag that decides it
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
SAME_OPTIMIZER = {"adamw_torch_fused": "adamw_torch"}  # --optim auto is one or the other, by engine
# Not recorded: paths and secrets of a machine, other spellings of a flag, flags of adapters and precision (compared by
# `check`), and values that follow from another flag.
UNRECORDED = (
    *("output_dir", "logging_dir", "cache_dir", "tokenized_cache", "resume_from_checkpoint", "resume", "local_rank"),
    *("debug", "debug_traceback", "accelerator_config", "parallelism_config", "hub_token", "ignore_data_skip"),
    *("evaluation_strategy", "group_by_length", "no_cuda", "save_safetensors", "overwrite_output_dir"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "do_train", "do_eval", "do_predict"),
    *("model_name_or_path", "lora_weight_path", "use_lora", "q_lora", "quantization", "bf16", "fp16"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_bias", "modules_to_save"),
    *("use_rslora", "use_dora", "hub", "revision"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor"),
)
ENDS = ("max_steps", "num_train_epochs", "early_stopping_patience")  # flags that decide when a run ends


class Settled(NamedTuple):
    """The settings of a run: those in use, those that this resume changed, and all changes so far."""

    settings: dict  # {flag: value}
    applied: dict  # {flag: [before, now]}
    resumed: list  # of {"step", "applied"}

    def report(self) -> None:
        """Log the changed settings that apply from now on. Call it after the data were compared."""
        if self.applied:
            logger.warning("resumed with other settings, which apply from here on: %s", self.said())

    def said(self) -> str:
        """Return the changed settings as text, each with its value before."""
        return ", ".join(f"--{flag} {shown(now)} (was {shown(was)})" for flag, (was, now) in self.applied.items())


def restore_kept_flags(groups: tuple, checkpoint: RunCheckpoint | None, *, anew: bool = False) -> Settled:
    """Set the KEPT flags in `groups` to the checkpoint's values, and return the Settled of the run.

    groups: `TrainFlags`. checkpoint: from which the run resumes, or None. anew: whether the data start anew.
    A checkpoint of an older version has no settings and changes nothing.
    Raise ValueError if a flag in REFUSED differs.
    """
    if checkpoint is None:
        return Settled(plain(groups), {}, [])
    path, state = checkpoint
    before, now, resumed = state.get("settings", {}), plain(groups), state.get("resumed", [])
    differing = {flag: (before[flag], now[flag]) for flag in now if flag in before and before[flag] != now[flag]}
    refuse(path, [
        f"--{flag} {shown(value)} (the checkpoint's: {shown(recorded)})"
        for flag, (recorded, value) in differing.items()
        if flag in REFUSED and not (anew and flag in WITH_DATA) and not is_same_optimizer(flag, recorded, value)
    ])  # fmt: skip
    kept = {flag: [value, recorded] for flag, (recorded, value) in differing.items() if flag in KEPT}
    for flag, (_, recorded) in kept.items():
        restore(groups, flag, recorded)
    if kept:
        said = [f"--{flag} {shown(value)} (the checkpoint's: {shown(used)})" for flag, (value, used) in kept.items()]
        logger.warning("resumed with other settings, which do not apply: %s", ", ".join(said))
    applied = {flag: list(pair) for flag, pair in differing.items() if flag not in (*KEPT, *REFUSED)}
    if applied:
        resumed = [*resumed, {"step": state["step"], "applied": applied}]
    return Settled(plain(groups), applied, resumed)


def of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Return {flag: values over all groups} of an optimizer's settings."""
    flags = {"learning_rate": "initial_lr", "weight_decay": "weight_decay", "adam_beta": "betas", "adam_epsilon": "eps"}
    groups, found = optimizer.param_groups, {}
    for flag, key in flags.items():
        values = [group[key] for group in groups if key in group]
        found[flag] = ", ".join(sorted({str(list(v) if isinstance(v, tuple) else v) for v in values}))
    return found


def check_optimizer(checkpoint: str, asked: dict[str, str], used: dict[str, str]) -> None:
    """Raise ValueError if an optimizer whose state was loaded has other settings, from `of_optimizer`, than before."""
    wrong = [f"--{flag} {used[flag]} (here: {asked[flag]})" for flag in used if used[flag] != asked[flag]]
    if wrong:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: made with {', '.join(wrong)}, which its optimizer keeps; give the "
            "same"
        )


def is_same_optimizer(flag: str, recorded: Any, value: Any) -> bool:
    """Return whether two values of --optim are the same optimizer, whose state fits both."""
    return flag == "optim" and SAME_OPTIMIZER.get(recorded, recorded) == SAME_OPTIMIZER.get(value, value)


def plain(groups: tuple) -> dict[str, Any]:
    """Return {flag: JSON value} of the flags that a checkpoint records."""
    names = [(group, flag.name) for group in groups for flag in fields(group) if flag.init]
    found = {name: getattr(group, name) for group, name in names if name not in UNRECORDED}
    return json.loads(json.dumps(found, default=str))


def restore(groups: tuple, flag: str, value: Any) -> None:
    """Set a flag to a recorded value, converted to the type of the flag."""
    group = next(group for group in groups if flag in {one.name for one in fields(group)})
    kind = type(getattr(group, flag))
    setattr(group, flag, kind(value) if issubclass(kind, str) and value is not None else value)


def shown(value: Any) -> str:
    """Return a value in the form of the command line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def refuse(checkpoint: str, problems: list[str]) -> None:
    """Raise ValueError if there are problems: flags with which the run cannot resume from the checkpoint."""
    if problems:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: made with other flags than this run's: {'; '.join(problems)}; "
            "give the checkpoint's, or begin a new run with --resume false or another --output_dir"
        )


def check(checkpoint: RunCheckpoint, model: nn.Module, *, dtype: torch.dtype, base: Base) -> None:
    """Raise ValueError if base, adapters or precision of a checkpoint differ from those of this run.

    model: on the meta device, from `recipe.rehearse`. dtype: in which this run computes. Entries that a
    checkpoint of an older version lacks are not compared.
    """
    path, state = checkpoint
    problems = []
    theirs = read_json_or_none(path, ADAPTER_CONFIG)
    ours = model.peft_config["default"].to_dict() if isinstance(model, PeftModel) else None
    if (ours is None) != (theirs is None):
        problems.append(f"--use_lora {ours is not None} (the checkpoint's: {theirs is not None})")
    elif ours is not None and theirs is not None:
        for field in ADAPTER_FLAGS.keys() & theirs.keys():
            asked, recorded = (comparable(config[field]) for config in (ours, theirs))
            if asked != recorded:
                problems.append(f"--{ADAPTER_FLAGS[field]} {shown(asked)} (the checkpoint's: {shown(recorded)})")
    own = str(dtype).removeprefix("torch.")
    if state.get("dtype", own) != own:
        problems.append(f"precision {own}, by --bf16 or --fp16 (the checkpoint's: {state['dtype']})")
    recorded = state.get("base") or read_json_or_none(path, ADAPTER_BASE) or {}
    if recorded.get("quantization", base["quantization"]) != base["quantization"]:
        problems.append(f"base weights as {base['quantization']} (the checkpoint's: {recorded['quantization']})")
    if recorded.get("fingerprint", base["fingerprint"]) != base["fingerprint"]:
        problems.append(f"--model_name_or_path {base['name']}, which holds other weights than {recorded['name']} did")
    refuse(path, sorted(problems))


def comparable(value: Any) -> Any:
    """Return a field of an adapter's config in a canonical form, so equal settings compare equal."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items()} or None
    return sorted(value) or None if isinstance(value, (list, set, tuple)) else value


def is_finished(
    output_dir: str | Path,
    checkpoint: RunCheckpoint,
    changed_flags: dict[str, Any],
    *,
    newest: bool,
    resumable: bool,
    max_steps: int,
    num_train_epochs: float,
) -> bool:
    """Return whether the output folder holds the result of the run up to a checkpoint's step, and no step is left.

    changed_flags: {flag: value} from `arguments.changed`. newest: whether the checkpoint was found by "auto"; it may be
    the best one of a finished run, which kept no other. resumable: whether a run can resume from it; otherwise it holds
    the model alone, and the run is finished only with exactly the same settings.
    """
    result, (path, state) = run_record.read(output_dir), checkpoint
    if not result or not run_record.is_newer(output_dir, checkpoints.written(path)):  # not left by an earlier run
        return False
    end = result["metrics"]["steps"]
    best = (read_json_or_none(output_dir, checkpoints.TRAINER_STATE) or {}).get("best_global_step")
    if state["step"] != end and not (newest and state["step"] == best):
        return False
    if not resumable:
        return json.loads(json.dumps(run_record.portable(changed_flags), default=str)) == result["settings"]
    same_end = all(result["settings"].get(flag) == changed_flags.get(flag) for flag in ENDS)
    return same_end or (state["step"] == end and not is_step_left(state, max_steps, num_train_epochs))


def is_step_left(state: dict[str, Any], max_steps: int, num_train_epochs: float) -> bool:
    """Return whether steps are left after the run state of a checkpoint, as far as known without the data."""
    if max_steps > 0:
        return state["step"] < max_steps
    data = state.get("data") or {}
    return not data.get("size") or data["epoch"] + data["seen"] / data["size"] < num_train_epochs
