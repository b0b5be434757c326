"""A model folder or an adapter on its base, opened to answer."""

import os

import torch

from qwen_vl.checkpoint import loading, quantization
from qwen_vl.checkpoint.dtypes import LoadedDtype, dtype_or_auto
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .attach import load_adapted


def load(
    path: str | os.PathLike[str] | ModelFolder,
    *,
    device: str | torch.device | None = None,
    dtype: LoadedDtype | str = "auto",
    base: str | None = None,
    trust_base: bool = False,
) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Return (model, tokenizer) of a model folder, hub name or adapter folder, in evaluation mode on `device`.

    device: None takes the accelerator if there is one. dtype: "auto" keeps the file's. base, trust_base: for an adapter
    whose base has moved or was not recorded. Raise OSError or ValueError if it cannot be loaded.
    """
    device = usable_device(device)
    dtype = dtype_or_auto(dtype) if isinstance(dtype, str) else dtype
    folder = ModelFolder.open(path)
    if folder.is_adapter:
        model, tokenizer = load_adapted(folder.path, base=base, dtype=dtype, trust_base=trust_base, device=device)
    else:
        tokenizer = folder.tokenizer
        model = loading.load_model(folder.path, dtype=dtype, device=device, fast_kernels=True)
    is_placed = quantization.kind_of(model.config) is not None  # quantized weights were loaded onto the device
    return (model if is_placed else model.to(device)).eval(), tokenizer


def usable_device(name: str | torch.device | None = None) -> torch.device:
    """Return the torch.device called `name`, or the best one here; raise ValueError if torch cannot use it."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        best = torch.accelerator.current_accelerator(check_available=True)
        there = "cpu" if best is None else f"{best.type} or cpu"
        raise ValueError(f"device {name!r} cannot be used here ({reason}); use {there}") from error
