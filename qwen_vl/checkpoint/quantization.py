"""Quantised weights: how a checkpoint is, or is to be, quantised; what that needs; how it is loaded.

A kind is "gptq" (Int4 or another width, in the layout of AutoGPTQ, always stored so), "nf4" or "int8" (bitsandbytes,
stored so or made of float weights while loading), or None.
Source of the Int4 layout: docs/checkpoint_format.md section 2.
"""

import contextlib
import copy
import io
import logging
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import logging as hf_logging

from qwen_vl.families.v1 import FLOAT_MODULES

PACKAGES = {"gptq": ("optimum", "gptqmodel"), "nf4": ("bitsandbytes",), "int8": ("bitsandbytes",)}
GPTQ_BITS = (2, 3, 4, 8)
# The kernel that unpacks a weight and multiplies: exact in every dtype, passes gradients, runs anywhere. The others
# round to bfloat16 (CPU) or pass no gradients.
EXACT_KERNEL, FAST_KERNEL = "gptq_torch", "auto"


def settings_of(config):
    """The quantization_config of a model's config as a dict, {} where there is none."""
    settings = getattr(config, "quantization_config", None) or {}  # an attribute that only quantised models have
    return settings if isinstance(settings, dict) else settings.to_dict()


def kind_of(config, path="the checkpoint"):
    """The kind that the weights of a config are stored in, or None for float weights; ValueError for any other."""
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
        f"{path}: quantised as {method} with {settings.get('bits', 'unknown')} bits, which cannot be read "
        "here; use a GPTQ checkpoint such as Qwen/Qwen-VL-Chat-Int4, a bitsandbytes one (nf4 or int8), or float weights"
    )


def describe(config, kind):
    """What a kind is called where people read it, such as "GPTQ with 4 bits"."""
    bits = settings_of(config).get("bits")
    return {"gptq": f"GPTQ with {bits} bits", "nf4": "bitsandbytes nf4", "int8": "bitsandbytes int8"}[kind]


def check_packages(kind):
    """None, or an ImportError that says what to install for a kind."""
    missing = [name for name in PACKAGES.get(kind, ()) if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'quantised weights ({kind}) need {" and ".join(missing)}: pip install "qwen-vl[quant]" '
            "(-c constraints.txt gives the versions that were tested together)"
        )


def chosen_kind(config, requested=None, path="the checkpoint", *, default=None):
    """The kind to load: that of the stored weights, else the requested one ("nf4", "int8"), else `default`.

    Raises ValueError where the stored weights are of another kind than the requested one, ImportError where packages
    are missing.
    """
    stored = kind_of(config, path)
    if stored and requested and stored != requested:
        raise ValueError(
            f"{path}: is quantised already ({describe(config, stored)}), so it cannot be loaded as {requested}; "
            "leave --quantization out, or give the float checkpoint"
        )
    kind = stored or requested or default
    check_packages(kind)
    return kind


def loading_options(config, kind, *, dtype, device=None, fast=False):
    """(config, keyword arguments) for `from_pretrained` of weights of a kind; the config passed in is not changed.

    `fast`: kernels for answering, which may round more and pass no gradients. `device` as torch names it, None: CPU.
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
            computing = {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
            config.quantization_config = settings_of(config) | computing
        return config, {"device_map": {"": device}}
    computing = dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.float32
    wanted = {"load_in_8bit": True}
    if kind == "nf4":
        wanted = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": computing}
        wanted["bnb_4bit_use_double_quant"] = True
    # bitsandbytes compares whole paths; a list replaces its own.
    return config, {
        "quantization_config": BitsAndBytesConfig(**wanted, llm_int8_skip_modules=list(FLOAT_MODULES)),
        "device_map": {"": device},
    }


@cache
def quiet_gptqmodel():
    """Import gptqmodel, where it is installed, without its banner; peft imports it for every adapter.

    Its log, the shared one of `logbar`, gets the level that the logger "gptqmodel" has; commands set that.
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


def settle(model, *, fast=False):
    """A model as it was loaded, ready for training unless `fast`: what CPUs do otherwise than GPUs is switched off.

    That is compilation of GPTQ layers, which costs minutes; and the layout into which bitsandbytes turns its layers at
    the first evaluation where the CPU knows bfloat16, for good, and which passes no gradients.
    """
    layers = quantized_linears(model)
    for module in [] if layers or fast else model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    if layers:
        vars(model).pop("hf_device_map", None)  # of one device; the Trainer would take it for several
    for module in layers.values():
        if module.qweight.device.type == "cpu":
            vars(module).pop("dequantize_weight", None)  # the compiled one; the class has the same, not compiled
    return model


def replace_linears(model, config):
    """A new float model, also one on the meta device, with the layers that a GPTQ config describes in the decoder."""
    quiet_gptqmodel()
    wanted = settings_of(config) | {"backend": EXACT_KERNEL}
    quantizer = import_module("optimum.gptq").GPTQQuantizer.from_dict(wanted)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # optimum reads every attribute, also one that transformers warns about
    try:
        return quantizer.convert_model(model)
    finally:
        hf_logging.set_verbosity(verbosity)


def quantized_linears(model):
    """{path: layer} of the GPTQ layers of a model; those of bitsandbytes are nn.Linear and look after themselves."""
    if kind_of(model.config) != "gptq":
        return {}
    quiet_gptqmodel()
    base = import_module("gptqmodel.nn_modules.qlinear").BaseQuantLinear
    return {path: module for path, module in model.named_modules() if isinstance(module, base)}


def packed_paths(model, kind):
    """Return the paths of the linears of a model whose weights are of a kind, or will be once they are loaded as it."""
    if kind in (None, "gptq"):
        return list(quantized_linears(model))
    linears = [path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [path for path in linears if not any(f"{path}.".startswith(f"{name}.") for name in FLOAT_MODULES)]


def linear_kinds(model):
    """The classes of the linear layers of a model, packed ones included."""
    return (torch.nn.Linear, *{type(layer) for layer in quantized_linears(model).values()})
