"""The device on which a model computes, even if some of its weights are offloaded by accelerate's hooks."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members
OFFLOADED = {"cpu", "disk"}  # entries of a device map; a model without another entry computes on "cpu"


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which `module` computes: that of its first weight, or of its hooks if it is offloaded.

    An offloaded weight is on the meta device until its module is called, so inputs must not go there.
    """
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    for part in module.modules():
        placed = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if placed is not None:
            return torch.empty(0, device=placed).device  # an int is the index of an accelerator
    return device


def keep_single_weights(model: nn.Module, device_map: dict | None) -> None:
    """Change a device map in place: a single weight that it offloads stays on the device that computes.

    accelerate loads the weights of a module that the map names when it is called. A single weight in the map, as those
    directly in a vision tower that is split, has no such module, and would stay on the meta device.
    """
    devices = list((device_map or {}).values())
    computes_on = next((device for device in devices if device not in OFFLOADED), "cpu")
    for name, _ in model.named_parameters():
        if device_map and device_map.get(name) in OFFLOADED:
            device_map[name] = computes_on


class PlacedModel(Mixin):
    """A mixin for a PreTrainedModel of which any part may be offloaded."""

    @property
    def device(self) -> torch.device:
        """Return the device for inputs; transformers returns "meta" if the first weight is offloaded."""
        return execution_device(self)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Load the weights as transformers does, after a call of `keep_single_weights` on the device map."""
        keep_single_weights(model, load_config.device_map)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
