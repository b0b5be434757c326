"""Where a model computes, also where some of its weights are kept elsewhere between two passes (accelerate's hooks)."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Mixin: Any = object  # for mypy: the model that a class is mixed into has more members
OFFLOADED = {"cpu", "disk"}  # entries of a device map; "cpu" is the place to compute where there is nothing else


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which `module` computes: that of its first weight, or of its hooks if that is offloaded.

    An offloaded weight lies on the meta device until its own module is called; nothing may be sent there.
    """
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    for part in module.modules():
        placed = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if placed is not None:
            return torch.empty(0, device=placed).device  # a number is an accelerator's index
    return device


def keep_single_weights(model: nn.Module, device_map: dict | None) -> None:
    """Change, in place, each entry of a device map that offloads a single weight: it stays where the model computes.

    accelerate brings back the weights of a module that the map names. A weight that is named by itself, as those that
    lie directly in a vision tower that is split, has no such module: it would stay on the meta device for ever.
    """
    devices = list((device_map or {}).values())
    computes_on = next((device for device in devices if device not in OFFLOADED), "cpu")
    for name, _ in model.named_parameters():
        if device_map and device_map.get(name) in OFFLOADED:
            device_map[name] = computes_on


class PlacedModel(Mixin):
    """A PreTrainedModel of which any part may be offloaded."""

    @property
    def device(self) -> torch.device:
        """The device that inputs go to; transformers' own answer is "meta" where the first weight is offloaded."""
        return execution_device(self)

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Load the weights as transformers does, after `keep_single_weights` has changed the device map."""
        keep_single_weights(model, load_config.device_map)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)
