"""A model folder, loaded for inference."""

import os

import torch

from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading, quantization
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer


def load(
    path: str | os.PathLike[str] | ModelFolder,
    *,
    device: str | None = None,
    dtype: LoadedDtype = "auto",
    base: str | None = None,
    trust_base: bool = False,
) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Return (model, tokenizer) of a model folder, hub name or adapter folder, in evaluation mode on `device`.

    device: None takes the accelerator if there is one. dtype: "auto" keeps the file's. base, trust_base: for an adapter
    whose base has moved or was not recorded. Raise OSError or ValueError if it cannot be loaded or cannot chat.
    """
    place = usable_device(device)
    folder = ModelFolder.open(path)
    if folder.is_adapter:
        model, tokenizer = load_adapted(folder.path, base=base, dtype=dtype, trust_base=trust_base, device=place)
    else:
        tokenizer = folder.tokenizer
        model = loading.load_model(path, dtype=dtype, device=place, fast_kernels=True)
    settings = model.generation_config.to_dict()
    if not family.is_chat(settings, unmarked=True):
        raise ValueError(
            f"{path}: a base model (chat_format {family.chat_format(settings)!r} in generation_config.json), which "
            "only continues texts; fine-tune it first, or take a chat model such as Qwen/Qwen-VL-Chat"
        )
    is_placed = quantization.kind_of(model.config) is not None  # quantized weights were loaded onto the device
    return (model if is_placed else model.to(place)).eval(), tokenizer


def usable_device(name: str | None = None) -> torch.device:
    """Return the torch.device called `name`, or the best one here. Raise ValueError if torch cannot use it."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try cpu or cuda") from error
