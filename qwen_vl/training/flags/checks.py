"""Checks of the flags of a run, alone and combined, before anything is started or loaded."""

import os
from argparse import Namespace
from collections.abc import Iterator
from math import inf, isfinite, isnan

import torch

from qwen_vl.data.chatml import LOSS_ON, POLICIES
from qwen_vl.data.mixing import MIXES, parse_sources
from qwen_vl.data.packing import PACKINGS
from qwen_vl.training.distributed import engines
from qwen_vl.training.monitor import reporting, selection

from . import adapter_checks, optimizers

CHOICES = {"mix": MIXES, "overlength": POLICIES, "loss_on": LOSS_ON, "packing": PACKINGS}
POSITIVE = (  # flags that make no sense at 0
    "model_max_length",
    "lora_r",
    "lora_alpha",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "meeting_timeout",
    "shuffle_buffer",
    "eval_generate_limit",
    "eval_generate_max_new_tokens",
    "eval_generate_batch_size",
)
NOT_NEGATIVE = (
    *("learning_rate", "vision_lr", "resampler_lr", "lora_lr", "weight_decay"),
    *("sample_phases_every", "dataloader_num_workers"),
)
FINITE = (  # flags whose sign transformers checks or uses
    *("warmup_steps", "warmup_ratio", "neftune_noise_alpha"),
    *("logging_steps", "eval_steps", "save_steps"),
)
MAY_BE_INFINITE = ("max_grad_norm", "eval_delay")  # then they clip nothing, and evaluate never


def check(settings: Namespace) -> list[str]:
    """Return a line for each wrong value of the flags and each wrong combination."""
    problems = [f"--{name} {value}: use {what}" for name, what, value in out_of_range(settings)]
    output_dir, name = settings.output_dir, settings.model_name_or_path
    if not output_dir:
        problems.append("--output_dir is missing; say where the result goes")
    elif os.path.isdir(output_dir) and os.path.realpath(output_dir) == os.path.realpath(name):
        problems.append(f"--output_dir {output_dir}: the model that is trained lies there; give another folder")
    if not settings.data_path:
        problems.append("--data_path is missing; give a conversation file")
    problems += check_streaming(settings) if settings.streaming else []
    problems += engines.check_config(settings.deepspeed, settings.fsdp_config)
    if settings.packing != "none" and (settings.group_by_length or settings.train_sampling_strategy != "random"):
        problems.append("--group_by_length is for samples that are padded, --packing leaves no padding; choose one")
    if settings.train_sampling_strategy == "batch_rebalance":
        problems.append("--train_sampling_strategy batch_rebalance cannot be resumed; use group_by_length")
    if settings.packing == "none" and settings.max_pictures_per_row is not None:
        problems.append("--max_pictures_per_row needs --packing auto")
    try:
        parse_sources(settings.data_path or [])
    except ValueError as error:
        problems.append(str(error))
    if (settings.evaluation_strategy or settings.eval_strategy) != "no" and not settings.eval_data_path:
        problems.append("--eval_strategy needs --eval_data_path")
    problems += adapter_checks.check(settings) + optimizers.check(settings) + selection.check(settings)
    problems += reporting.check(settings)
    if settings.vision_cache and not settings.fix_vit and not settings.use_lora:
        problems.append("--vision_cache needs a frozen ViT; leave it or --fix_vit False out")
    if settings.fp16 and not torch.accelerator.is_available():
        problems.append("--fp16 needs a GPU; use --bf16, or neither of them")
    if settings.checkpoint_every_n_blocks > 1 and not (
        settings.gradient_checkpointing or settings.activation_checkpointing
    ):
        problems.append("--checkpoint_every_n_blocks needs --gradient_checkpointing True")
    if settings.checkpoint_every_n_blocks > 1 and settings.fsdp:
        problems.append("--checkpoint_every_n_blocks has no effect with --fsdp, which recomputes every block or none")
    if settings.remove_unused_columns:
        problems.append("--remove_unused_columns True would remove the images; leave the flag out")
    if not settings.save_safetensors:
        problems.append("--save_safetensors False: this tool writes safetensors only; leave the flag out")
    return problems


def check_streaming(settings: Namespace) -> list[str]:
    """Return a line for each flag that --streaming excludes, or needs and lacks."""
    problems = []
    if settings.max_steps <= 0:
        problems.append("--streaming needs --max_steps: how many steps an epoch has is not known")
    if settings.group_by_length or settings.train_sampling_strategy == "group_by_length":
        problems.append("--group_by_length needs all lengths, which --streaming does not know; leave one of them out")
    if settings.tokenized_cache not in (None, "none"):
        problems.append("--tokenized_cache holds all of the data, --streaming never; leave one of them out")
    return problems


def out_of_range(settings: Namespace) -> Iterator[tuple[str, str, object]]:
    """Yield (flag, valid values in words, value) for each value that no run can use."""
    for name in POSITIVE:
        if not 0 < getattr(settings, name) < inf:  # nor is it NaN
            yield name, "a number above 0", getattr(settings, name)
    if not 0 <= settings.lora_dropout < 1:
        yield "lora_dropout", "a number from 0 up to, but not including, 1", settings.lora_dropout
    for name in NOT_NEGATIVE:
        if not 0 <= (getattr(settings, name) or 0) < inf:
            yield name, "a number of 0 or more", getattr(settings, name)
    for name in FINITE:
        if not isfinite(getattr(settings, name) or 0):
            yield name, "a finite number", getattr(settings, name)
    for name in MAY_BE_INFINITE:
        if isnan(getattr(settings, name)):
            yield name, "a number", getattr(settings, name)
    if settings.loraplus_lr_ratio is not None and not 1 <= settings.loraplus_lr_ratio < inf:
        yield "loraplus_lr_ratio", "a number of 1 or more, such as 16", settings.loraplus_lr_ratio
    for name, choices in CHOICES.items():
        if getattr(settings, name) not in choices:
            yield name, f"one of {', '.join(choices)}", getattr(settings, name)
    if settings.label_smoothing_factor:
        yield "label_smoothing_factor", "0, as transformers' smoothing does not fit", settings.label_smoothing_factor
