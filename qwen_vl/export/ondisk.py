"""A model whose weights stay on disk: each block is read when it is run and dropped after it.

So a forward pass, a merge or a quantisation needs the memory of about one block, whatever the model's size.
"""

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.training import adapters, loading, quantization

from .weights import Weights

KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")  # of PEFT's init_lora_weights


def build(path, weights):
    """A QWenLMHeadModel in evaluation mode with the float architecture of a checkpoint, all its weights placeholders.

    Raises ValueError where the names or shapes in `weights` are not those of the configuration.
    """
    config = loading.load_config(path)
    if weights.is_quantized:
        del config.quantization_config
    with torch.device("meta"):
        model = QWenLMHeadModel(config).eval()
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
            f"{path}: the weights do not fit config.json: {'; '.join(wrong)}; use the files of one checkpoint"
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
    """The float model of a checkpoint folder or hub name. `model` runs once `stream` was called, or `fill` for a part.

    Raises ValueError where the weights do not fit the configuration, OSError where there are none.
    """

    def __init__(self, path):
        self.weights = Weights(path)
        self.model = build(path, self.weights)
        modules = dict(self.model.named_modules())
        # Kept from before adapters are wrapped around: {name: (module, leaf)} and {block: module}.
        split = {name: name.rpartition(".")[::2] for name, _ in self.model.named_parameters()}
        self.places = {name: (modules[owner], leaf) for name, (owner, leaf) in split.items()}
        self.blocks = {}
        for name in self.places:
            self.blocks.setdefault(family.block_of(name), []).append(name)
        self._modules = {block: modules[block.removesuffix(".")] for block in self.blocks if block}

    def adapt(self, adapter_dir, *, dtype=torch.float32):
        """Wrap an adapter around the model; what the adapter holds whole, such as embeddings, comes in `dtype`.

        Raises ValueError for an adapter that is damaged, incomplete or of another model.
        """
        check_start(adapter_dir)
        quantization.quiet_gptqmodel()  # which peft imports for any adapter
        try:
            adapted = PeftModel.from_pretrained(self.model, adapter_dir, low_cpu_mem_usage=True)
        except (RuntimeError, SafetensorError, KeyError) as error:
            raise ValueError(f"{adapter_dir}: the adapter is damaged or does not fit the model: {error}") from error
        for name, parameter in adapted.named_parameters():
            if parameter.device.type == "meta":
                raise ValueError(f"{adapter_dir}: the adapter is damaged: it has no {name}")
            if ".lora_" not in name and ".trainable_tokens_" not in name and not is_placeholder(parameter):
                parameter.data = parameter.data.to(dtype)
        self.model = adapted.eval()

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
        for block, module in self._modules.items():
            # What an adapter has put around a layer reads its weights, and need not call the layer itself.
            _, layer = adapted_layer(self.model, block)
            if not isinstance(layer, ModulesToSaveWrapper):  # which calls a copy of its own, and never the layer
                self._read_when_run(module if layer is None else layer, self.blocks[block], dtype, device)
        return self.model

    def _read_when_run(self, module, names, dtype, device):
        held = []
        module.register_forward_pre_hook(lambda *_: held.extend(self.fill(names, dtype=dtype, device=device)))

        def drop(*_):
            self.empty(held)
            held.clear()

        module.register_forward_hook(drop, always_call=True)


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
    adapters.check_plain(adapter_dir)
    if config.init_lora_weights not in KEEP_THE_BASE:
        raise ValueError(
            f"{adapter_dir}: began with init_lora_weights {config.init_lora_weights!r}, which changed its base; take "
            "the adapter in the output folder of its run, which goes with the unchanged base"
        )
