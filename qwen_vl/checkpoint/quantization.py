"""Quantized weights: how a checkpoint is stored or will be quantized, which packages that needs, how it is loaded.

A kind is "gptq", "nf4", "int8" or None. "gptq" is Int4 or another width in the layout of AutoGPTQ, and is always
stored so. "nf4" and "int8" belong to bitsandbytes; they are stored so, or made from float weights while loading.
Source of the Int4 layout: docs/checkpoint_format.md section 2.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from qwen_vl.families.v1 import FLOAT_MODULES
from qwen_vl.model import QWenConfig

from .dtypes import LoadedDtype

PACKAGES = {"gptq": ("optimum", "gptqmodel"), "nf4": ("bitsandbytes",), "int8": ("bitsandbytes",)}
GPTQ_BITS = (2, 3, 4, 8)
# The first kernel unpacks a weight and multiplies: it is exact in every dtype, passes gradients and runs on any device.
# The others round to bfloat16 (CPU) or pass no gradients.
EXACT_KERNEL, FAST_KERNEL = "gptq_torch", "auto"


def settings_of(config: QWenConfig) -> dict[str, Any]:
    """Return the quantization_config of a model's config as a dict, {} if there is none."""
    settings = getattr(config, "quantization_config", None) or {}  # an attribute that only quantized models have
    return settings if isinstance(settings, dict) else settings.to_dict()


def kind_of(config: QWenConfig, path: str | os.PathLike[str] = "the checkpoint") -> str | None:
    """Return the kind that the weights of a config are stored in, None for float weights.

    Raise ValueError for a quantization that cannot be read here. path: of the checkpoint, for messages.
    """
    settings = settings_of(config)
    if not settings:
        return None
    method = settings.get("quant_method", "unknown")
    if method == "gptq" and settings.get("bits") in GPTQ_BITS:
        return "gptq"
    if method == "bitsandbytes" and settings.get("load_in_8bit"):
        return "int8"
    if method == "bitsandbytes" and settings.get("bnb_4bit_quant_type") == "nf4":
        return "nf4"
    raise ValueError(
        f"{path}: quantized as {method} with {settings.get('bits', 'unknown')} bits, which cannot be read "
        "here; use a GPTQ checkpoint such as Qwen/Qwen-VL-Chat-Int4, a bitsandbytes one (nf4 or int8), or float weights"
    )


def describe(config: QWenConfig, kind: str) -> str:
    """Return the name of a kind for messages, such as "GPTQ with 4 bits"."""
    bits = settings_of(config).get("bits")
    return {"gptq": f"GPTQ with {bits} bits", "nf4": "bitsandbytes nf4", "int8": "bitsandbytes int8"}[kind]


def check_packages(kind: str | None) -> None:
    """Raise ImportError, with what to install, if the packages of a kind are missing."""
    needed = PACKAGES.get(kind, ()) if kind else ()
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'quantized weights ({kind}) need {" and ".join(missing)}: pip install "qwen-vl[quant]" '
            "(-c constraints.txt gives the versions that were tested together)"
        )


def chosen_kind(
    config: QWenConfig, requested: str | None, path: str | os.PathLike[str], *, default: str | None = None
) -> str | None:
    """Return the kind to load: that of the stored weights, else the requested one ("nf4", "int8"), else `default`.

    Raise ValueError if the stored weights are of another kind than the requested one, ImportError if packages are
    missing.
    """
    stored = kind_of(config, path)
    if stored and requested and stored != requested:
        raise ValueError(
            f"{path}: is quantized already ({describe(config, stored)}), so it cannot be loaded as {requested}; "
            "leave --quantization out, or give the float checkpoint"
        )
    kind = stored or requested or default
    check_packages(kind)
    return kind


def loading_options(
    config: QWenConfig,
    kind: str,
    *,
    dtype: LoadedDtype,
    device: str | torch.device | None,
    fast: bool,
) -> tuple[QWenConfig, dict[str, Any]]:
    """Return (config, keyword arguments) for `from_pretrained` of weights of a kind. The given config is not changed.

    fast: use kernels for inference, which may round more and pass no gradients. device: as torch names it, None: CPU.
    """
    device = torch.device(device or "cpu")
    if kind == "gptq":
        quiet_gptqmodel()
        config = copy.deepcopy(config)
        config.quantization_config = settings_of(config) | {"backend": FAST_KERNEL if fast else EXACT_KERNEL}
        return config, {"device_map": {"": device}}
    if kind_of(config):  # stored by bitsandbytes
        if kind == "nf4" and isinstance(dtype, torch.dtype):
            config = copy.deepcopy(config)
            changed = {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
            config.quantization_config = settings_of(config) | changed
        return config, {"device_map": {"": device}}
    computing = dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.float32
    wanted: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        wanted = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": computing}
        wanted["bnb_4bit_use_double_quant"] = True
    # bitsandbytes compares whole paths; a list replaces its own.
    return config, {
        "quantization_config": BitsAndBytesConfig(**wanted, llm_int8_skip_modules=list(FLOAT_MODULES)),
        "device_map": {"": device},
    }


@cache
def quiet_gptqmodel() -> None:
    """Import gptqmodel, if it is installed, without its banner; peft imports it for every adapter.

    Its log, the shared one of `logbar`, gets the level of the logger "gptqmodel", which commands set.
    """
    if find_spec("gptqmodel") is None:
        return
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = import_module("logbar").LogBar.shared()
        level = logging.getLogger("gptqmodel").level or log.level
        log.setLevel(logging.ERROR)
        import_module("gptqmodel")
        log.setLevel(level)


def settle(model: PreTrainedModel, *, fast: bool) -> PreTrainedModel:
    """Switch off what quantized layers do on CPUs alone, and return the loaded model; unless `fast`, it can be trained.

    GPTQ layers are not compiled, which would take minutes. bitsandbytes layers keep their layout: on a CPU with
    bfloat16 the first evaluation would change it permanently to one that passes no gradients.
    """
    layers = quantized_linears(model)
    for module in [] if layers or fast else model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    if layers:
        vars(model).pop("hf_device_map", None)  # it names one device; the Trainer would assume several
    for module in layers.values():
        if module.qweight.device.type == "cpu":
            vars(module).pop("dequantize_weight", None)  # the compiled method; that of the class is not compiled
    return model


def replace_linears(model: PreTrainedModel, config: QWenConfig) -> PreTrainedModel:
    """Replace the decoder's linears in a new float model by the layers that a GPTQ config describes, and return it.

    The model may be on the meta device.
    """
    quiet_gptqmodel()
    wanted = settings_of(config) | {"backend": EXACT_KERNEL}
    quantizer = import_module("optimum.gptq").GPTQQuantizer.from_dict(wanted)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # optimum reads every attribute, even one that transformers warns about
    try:
        return quantizer.convert_model(model)
    finally:
        hf_logging.set_verbosity(verbosity)


def quantized_linears(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return {path: layer} of the GPTQ layers of a model. bitsandbytes layers are nn.Linear and need no extra care."""
    if kind_of(model.config) != "gptq":
        return {}
    quiet_gptqmodel()
    base = import_module("gptqmodel.nn_modules.qlinear").BaseQuantLinear
    return {path: module for path, module in model.named_modules() if isinstance(module, base)}


def packed_paths(model: PreTrainedModel, kind: str | None) -> list[str]:
    """Return the paths of the linears of a model whose weights have a kind, or will have it once they are loaded."""
    if kind in (None, "gptq"):
        return list(quantized_linears(model))
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [path for path in linears if not any(f"{path}.".startswith(f"{name}.") for name in FLOAT_MODULES)]


def linear_kinds(model: PreTrainedModel) -> tuple[type[torch.nn.Module], ...]:
    """Return the classes of the linear layers of a model, including those of packed layers."""
    return (torch.nn.Linear, *{type(layer) for layer in quantized_linears(model).values()})
