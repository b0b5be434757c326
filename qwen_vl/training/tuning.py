"""What trains, and in which dtype."""

from typing import TypeVar

import torch
from torch import nn

from qwen_vl.adapters.build import freeze_fixed_table
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def freeze_for_full(model: QWenLMHeadModel, *, fix_vit: bool) -> QWenLMHeadModel:
    """Make everything trainable but, if `fix_vit`, the vision tower without its resampler; return the model.

    The resampler's position table never trains. Source: docs/checkpoint_format.md section 7.
    """
    model.requires_grad_(True)
    if fix_vit:
        family.tower(model).requires_grad_(False)
        family.resampler(model).requires_grad_(True)
    return freeze_fixed_table(model)


def train_in_float32(model: AnyModel) -> AnyModel:
    """Convert the trainable weights to float32, so that small updates are not rounded away; return the model."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def train_in(model: AnyModel, dtype: torch.dtype) -> AnyModel:
    """Convert the trainable weights to one `dtype`, as DeepSpeed ZeRO-3 needs them; return the model.

    PEFT makes some of them float32.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
            if hasattr(parameter, "ds_tensor"):  # this process's share of it
                parameter.ds_tensor.data = parameter.ds_tensor.data.to(dtype)
    return model


def compute_dtype(*, bf16: bool, fp16: bool) -> torch.dtype:
    """Return the dtype of frozen weights: what the flags ask for, else float32."""
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32
