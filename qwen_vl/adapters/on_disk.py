"""An adapter on a model whose weights stay on disk: attached, and merged layer by layer."""

from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn

from qwen_vl.checkpoint import quantization
from qwen_vl.checkpoint.disk_model import DiskModel, is_placeholder

from .adapter import Adapter


class AdaptedLayer(NamedTuple):
    """A layer by which PEFT has replaced a plain one."""

    path: str  # of the plain one, in the model without adapters
    module: nn.Module  # a BaseTunerLayer or an AuxiliaryTrainingWrapper


def adapted_layer(model: nn.Module, name: str) -> AdaptedLayer | None:
    """Return the adapted layer that a weight lies in, or None."""
    if not isinstance(model, PeftModel):
        return None
    path, module = [], model.base_model.model
    for part in name.split(".")[:-1]:
        path.append(part)
        module = module.get_submodule(part)
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            return AdaptedLayer(".".join(path), module)
    return None


def adapt(disk: DiskModel, adapter: Adapter, *, dtype: torch.dtype = torch.float32) -> None:
    """Wrap an adapter around the model of a DiskModel. Modules that it holds whole, such as embeddings, get `dtype`.

    Raise ValueError for an adapter that is damaged, incomplete or of another model.
    """
    adapter.check_start()
    quantization.quiet_gptqmodel()  # which peft imports for any adapter
    try:
        adapted = PeftModel.from_pretrained(disk.model, str(adapter.folder), low_cpu_mem_usage=True)
    except (RuntimeError, SafetensorError, KeyError) as error:
        raise adapter.misfit(error) from error
    for name, parameter in adapted.named_parameters():
        if parameter.device.type == "meta":
            raise ValueError(f"{adapter.folder}: the adapter is damaged: it has no {name}")
        if ".lora_" not in name and ".trainable_tokens_" not in name and not is_placeholder(parameter):
            parameter.data = parameter.data.to(dtype)
    disk.model = adapted.eval()
    for block in disk.runners:
        # The wrapper of an adapter reads the weights of its layer, and need not call the layer itself.
        layer = adapted_layer(disk.model, block)
        if layer is not None:  # a ModulesToSaveWrapper calls a copy of its own, and never the layer
            disk.runners[block] = None if isinstance(layer.module, ModulesToSaveWrapper) else layer.module


@torch.no_grad()
def merged(disk: DiskModel, name: str) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a weight, with its adapter added, and of all others in the same adapted layer.

    Computed by PEFT in float32, whatever the base is stored in, so that each weight is rounded once.
    Raise ValueError if the adapter of the layer cannot be merged.
    """
    layer = adapted_layer(disk.model, name)
    if layer is None:
        value = disk.current(name)
        return {name: disk.weights.read(name) if value is None else value}
    path: str = layer.path
    module: Any = layer.module  # of a class of PEFT, which declares no types
    filled = disk.fill([other for other in disk.places if other.startswith(f"{path}.")], dtype=torch.float32)
    try:
        if isinstance(module, AuxiliaryTrainingWrapper):  # saved whole, or some of its rows
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        else:
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
    except RuntimeError as error:
        raise ValueError(f"{path}: this adapter cannot be merged: {error}") from error
    tensors = {f"{path}.{leaf}": parameter.data for leaf, parameter in plain.named_parameters()}
    disk.empty(filled)
    return tensors
