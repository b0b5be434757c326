"""A model whose weights stay on disk: each block is read when it is run and dropped after it.

So a forward pass, a merge or a quantisation needs the memory of about one block, whatever the model's size.
"""

import copy
import os

import torch
from torch import nn

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel

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
    wanted = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    there = weights.names()
    left_over = [name for name in sorted(set(there) - set(wanted)) if not is_zero_bias(name, weights)]
    problems = {
        "missing": sorted(set(wanted) - set(there)),
        "left over": left_over,
        "of another shape": [n for n in wanted if n in there and weights.shape(n) not in (None, wanted[n])],
    }
    wrong = [f"{len(names)} {what} ({', '.join(names[:3])} ..)" for what, names in problems.items() if names]
    if wrong:
        raise ValueError(
            f"{folder}: the weights do not fit config.json: {'; '.join(wrong)}; use the files of one checkpoint"
        )
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[leaf] = placeholder(parameter.shape)
    return model


def is_zero_bias(name, weights):
    """Whether a tensor is the zero bias that AutoGPTQ's layout gives each linear that has none."""
    return weights.is_quantized and family.may_be_zero_bias(name) and not weights.read(name).any()


def placeholder(shape):
    """A parameter of any shape that takes four bytes. Not on the meta device, where PEFT would lose its adapters."""
    return nn.Parameter(torch.zeros(1).expand(shape), requires_grad=False)


def is_placeholder(tensor):
    """Whether a parameter was never given a value."""
    return tensor.untyped_storage().nbytes() < tensor.nbytes


class DiskModel:
    """The float model of a model folder. `model` runs once `stream` was called, or `fill` for a part.

    Raises ValueError if the weights do not fit the configuration, OSError if there are none.
    """

    def __init__(self, path: str | os.PathLike[str] | ModelFolder) -> None:
        self.folder = ModelFolder.open(path)
        self.weights = self.folder.tensors
        self.model = build(self.folder)
        modules = dict(self.model.named_modules())
        # Kept from before adapters are wrapped around: {name: (module, leaf)} and {block: module}.
        split = {name: name.rpartition(".")[::2] for name, _ in self.model.named_parameters()}
        self.places = {name: (modules[owner], leaf) for name, (owner, leaf) in split.items()}
        self.blocks = {}
        for name in self.places:
            self.blocks.setdefault(family.block_of(name), []).append(name)
        # The module whose run reads a block, None where nothing runs it; `adapters.on_disk` puts others in their place.
        self.runners: dict[str, nn.Module | None] = {
            block: modules[block.removesuffix(".")] for block in self.blocks if block
        }

    def shapes(self):
        """{name: shape} of all weights."""
        return {name: module._parameters[leaf].shape for name, (module, leaf) in self.places.items()}

    def current(self, name):
        """The value of a weight that no longer is a placeholder, else None."""
        module, leaf = self.places[name]
        return None if is_placeholder(module._parameters[leaf]) else module._parameters[leaf].data

    def fill(self, names, *, dtype, device="cpu"):
        """Read those of `names` that are placeholders; returns their names, for `empty`."""
        filled = [name for name in names if self.current(name) is None]
        for name in filled:
            module, leaf = self.places[name]
            module._parameters[leaf] = nn.Parameter(self.weights.read(name).to(device, dtype), requires_grad=False)
        return filled

    def empty(self, names):
        """Make weights placeholders again."""
        for name in names:
            module, leaf = self.places[name]
            module._parameters[leaf] = placeholder(module._parameters[leaf].shape)

    def stream(self, *, dtype, device="cpu"):
        """Read from now on the weights of a block when it runs, and what is in no block now; returns the model.

        A tensor that is stored in `dtype` is used where it is mapped.
        """
        self.fill(self.blocks[None], dtype=dtype, device=device)
        for block, module in self.runners.items():
            if module is not None:
                self._read_when_run(module, self.blocks[block], dtype, device)
        return self.model

    def _read_when_run(self, module, names, dtype, device):
        held = []
        module.register_forward_pre_hook(lambda *_: held.extend(self.fill(names, dtype=dtype, device=device)))

        def drop(*_):
            self.empty(held)
            held.clear()

        module.register_forward_hook(drop, always_call=True)
