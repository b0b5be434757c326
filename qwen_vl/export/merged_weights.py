"""The arithmetic of a merge: the weights of one layer with its adapter added, by PEFT's own code."""

from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper

from qwen_vl.adapters.on_disk import adapted_layer
from qwen_vl.checkpoint.disk_model import DiskModel


@torch.no_grad()
def merged(disk: DiskModel, name: str) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a weight and of all others in the same adapted layer.

    Computed in float32, whatever the base is stored in, so that each weight is rounded once.
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
