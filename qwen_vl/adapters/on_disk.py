"""Adapters on a model whose weights stay on disk."""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import SafetensorError

from qwen_vl.checkpoint import quantization
from qwen_vl.checkpoint.disk_model import DiskModel, is_placeholder

from . import lora_targets

KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # of PEFT's init_lora_weights


def adapted_layer(model, name):
    """(path, module) of the layer around a weight that PEFT has put in the place of the plain one, or (None, None)."""
    if not isinstance(model, PeftModel):
        return None, None
    path, model = [], model.base_model.model
    for part in name.split(".")[:-1]:
        path.append(part)
        model = model.get_submodule(part)
        if isinstance(model, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            return ".".join(path), model
    return None, None


def check_start(adapter_dir):
    """None, or a ValueError for an adapter of another kind than LoRA, or whose start changed its base's weights."""
    config = PeftConfig.from_pretrained(adapter_dir)
    if config.peft_type != "LORA":
        raise ValueError(f"{adapter_dir}: an adapter of type {config.peft_type}; only LoRA adapters are merged here")
    lora_targets.check_plain(adapter_dir)
    if config.init_lora_weights not in KEEP_THE_BASE:
        raise ValueError(
            f"{adapter_dir}: began with init_lora_weights {config.init_lora_weights!r}, which changed its base; take "
            "the adapter in the output folder of its run, which goes with the unchanged base"
        )


def adapt(disk: DiskModel, adapter_dir: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Wrap an adapter around the model of a DiskModel; what it holds whole, such as embeddings, comes in `dtype`.

    Raise ValueError for an adapter that is damaged, incomplete or of another model.
    """
    check_start(adapter_dir)
    quantization.quiet_gptqmodel()  # which peft imports for any adapter
    try:
        adapted = PeftModel.from_pretrained(disk.model, adapter_dir, low_cpu_mem_usage=True)
    except (RuntimeError, SafetensorError, KeyError) as error:
        raise ValueError(f"{adapter_dir}: the adapter is damaged or does not fit the model: {error}") from error
    for name, parameter in adapted.named_parameters():
        if parameter.device.type == "meta":
            raise ValueError(f"{adapter_dir}: the adapter is damaged: it has no {name}")
        if ".lora_" not in name and ".trainable_tokens_" not in name and not is_placeholder(parameter):
            parameter.data = parameter.data.to(dtype)
    disk.model = adapted.eval()
    for block in disk.runners:
        # What an adapter has put around a layer reads its weights, and need not call the layer itself.
        _, layer = adapted_layer(disk.model, block)
        if layer is not None:  # a ModulesToSaveWrapper calls a copy of its own, and never the layer
            disk.runners[block] = None if isinstance(layer, ModulesToSaveWrapper) else layer
