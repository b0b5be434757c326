"""A model whose weights stay on disk: each block is read when it runs and dropped after it.

A forward pass, a merge or a quantization needs the memory of about one block, whatever the model's size.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel

from . import fit
from .folder import ModelFolder


def build(folder: ModelFolder) -> QWenLMHeadModel:
    """Return a model in evaluation mode with the float architecture of a folder, all its weights placeholders.

    Its generation settings are those of the folder. Raise ValueError if the weights do not fit the configuration.
    """
    weights = folder.tensors
    config = copy.deepcopy(folder.config)
    if weights.is_quantized:
        del config.quantization_config
    with torch.device("meta"):
        model = QWenLMHeadModel(config).eval()
    if folder.generation_config is not None:
        model.generation_config = copy.deepcopy(folder.generation_config)
    misfit = fit.compare(fit.shapes(model.named_parameters()), {name: weights.shape(name) for name in weights.names()})
    fit.check(folder, fit.without_zero_biases(misfit, weights.read) if weights.is_quantized else misfit)
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[leaf] = placeholder(parameter.shape)
    return model


def placeholder(shape: Sequence[int]) -> nn.Parameter:
    """Return a parameter of four bytes of any shape; not on the meta device, where PEFT would lose its adapters."""
    return nn.Parameter(torch.zeros(1).expand(shape), requires_grad=False)


def is_placeholder(tensor: torch.Tensor) -> bool:
    """Return whether a parameter was never given a value."""
    return tensor.untyped_storage().nbytes() < tensor.nbytes


class DiskModel:
    """The float model of a model folder. `model` runs once `stream` was called, or `fill` for a part.

    Raises ValueError if the weights do not fit the configuration, OSError if there are none.
    """

    def __init__(self, path: str | os.PathLike[str] | ModelFolder) -> None:
        self.folder = ModelFolder.open(path)
        self.weights = self.folder.tensors
        self.model = self.plain = build(self.folder)  # `plain` stays when an adapter is wrapped around `model`
        modules = dict(self.model.named_modules())
        # Collected before adapters wrap the modules: {name: (module, leaf)} and {block: module}.
        split = {name: name.rpartition(".")[::2] for name, _ in self.model.named_parameters()}
        self.places = {name: (modules[owner], leaf) for name, (owner, leaf) in split.items()}
        self.blocks: dict[str | None, list[str]] = {}
        for name in self.places:
            self.blocks.setdefault(family.block_of(name), []).append(name)
        # The module whose run reads a block, None if nothing runs it; `adapters.on_disk` replaces some.
        self.runners: dict[str, nn.Module | None] = {
            block: modules[block.removesuffix(".")] for block in self.blocks if block
        }

    def shapes(self) -> dict[str, torch.Size]:
        """Return {name: shape} of all weights."""
        return {name: module._parameters[leaf].shape for name, (module, leaf) in self.places.items()}

    def current(self, name: str) -> torch.Tensor | None:
        """Return the value of a weight, None if it is a placeholder."""
        module, leaf = self.places[name]
        return None if is_placeholder(module._parameters[leaf]) else module._parameters[leaf].data

    def fill(self, names: Iterable[str], *, dtype: torch.dtype, device: str | torch.device = "cpu") -> list[str]:
        """Read those of `names` that are placeholders; return their names, for `empty`."""
        filled = [name for name in names if self.current(name) is None]
        for name in filled:
            module, leaf = self.places[name]
            module._parameters[leaf] = nn.Parameter(self.weights.read(name).to(device, dtype), requires_grad=False)
        return filled

    def empty(self, names: Iterable[str]) -> None:
        """Make weights placeholders again."""
        for name in names:
            module, leaf = self.places[name]
            module._parameters[leaf] = placeholder(module._parameters[leaf].shape)

    def stream(self, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> QWenLMHeadModel:
        """Read the weights outside of blocks now, and those of a block whenever it runs; return the model.

        A tensor that is stored in `dtype` is not copied from its mapped file.
        """
        self.fill(self.blocks[None], dtype=dtype, device=device)
        for block, module in self.runners.items():
            if module is not None:
                self._read_when_run(module, self.blocks[block], dtype, device)
        return self.model

    def _read_when_run(
        self, module: nn.Module, names: list[str], dtype: torch.dtype, device: str | torch.device
    ) -> None:
        held: list[str] = []
        module.register_forward_pre_hook(lambda *_: held.extend(self.fill(names, dtype=dtype, device=device)))

        def drop(*_: Any) -> None:
            self.empty(held)
            held.clear()

        module.register_forward_hook(drop, always_call=True)
