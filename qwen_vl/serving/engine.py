"""A checkpoint, ready to answer."""

import torch

from qwen_vl.adapters.adapter import is_adapter
from qwen_vl.adapters.attach import load_adapted
from qwen_vl.checkpoint import loading, quantization
from qwen_vl.families import v1 as family


def load(path, *, device=None, dtype="auto", base=None, trust_base=False):
    """(model, tokenizer) of a checkpoint folder, a hub name or an adapter folder, in evaluation mode on `device`.

    device: None takes the GPU where there is one. dtype: "auto" keeps the file's. base, trust_base: for an adapter
    whose base has moved or was not recorded. Raises OSError and ValueError for what cannot be loaded or cannot chat.
    """
    device = usable_device(device)
    if is_adapter(path):
        model, tokenizer = load_adapted(path, base=base, dtype=dtype, trust_base=trust_base, device=device)
    else:
        tokenizer = loading.load_tokenizer(path)
        model = loading.load_model(path, dtype=dtype, device=device, fast_kernels=True)
    settings = model.generation_config.to_dict()
    if not family.is_chat(settings, unmarked=True):
        raise ValueError(
            f"{path}: a base model (chat_format {family.chat_format(settings)!r} in generation_config.json), which "
            "only continues texts; fine-tune it first, or take a chat model such as Qwen/Qwen-VL-Chat"
        )
    is_placed = quantization.kind_of(model.config) is not None  # quantised weights were loaded onto the device
    return (model if is_placed else model.to(device)).eval(), tokenizer


def usable_device(name=None):
    """The torch.device called `name`, or the best one here; ValueError where torch cannot use it."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try cpu or cuda") from error
