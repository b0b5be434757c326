"""What trains: freezing, adapters, optimizer groups, and the table that is shown before the first step."""

import torch

from qwen_vl.adapters.build import freeze_fixed_table
from qwen_vl.families import v1 as family


def freeze_for_full(model, *, fix_vit):
    """The model with everything trainable but, if `fix_vit`, the vision tower without its resampler.

    The resampler's position table never trains. Source: docs/checkpoint_format.md section 7.
    """
    model.requires_grad_(True)
    if fix_vit:
        family.tower(model).requires_grad_(False)
        family.resampler(model).requires_grad_(True)
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


def compute_dtype(*, bf16, fp16):
    """The dtype that frozen weights are kept in: what the flags ask for, else float32."""
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32
