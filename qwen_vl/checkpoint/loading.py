"""Loading: configuration, tokenizer, the model in the wanted dtype, and the fingerprint of its weights."""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging as hf_logging

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import fit
from . import quantization as quantized
from .dtypes import LoadedDtype
from .files import (
    Folder,
    StoredTensor,
    find_file,
    local_folder,
    open_tensors,
    read_json,
    reading_weights,
    refuse_adapter,
    shape_of,
    weight_files,
)

logger = logging.getLogger(__name__)

SAMPLED_VALUES = 1024  # of the start and of the end of each tensor that a fingerprint reads


def load_config(path: Folder, cache_dir: str | None = None) -> QWenConfig:
    """Return the configuration of a model folder or hub name.

    Raise ValueError for another architecture or an adapter, OSError if there is none.
    """
    if not os.path.isdir(path):
        logger.warning("%s is no folder here; asking the download cache and the hub for it", path)
    settings = read_json(path, "config.json", cache_dir)
    if settings is None:
        refuse_adapter(path)
        raise FileNotFoundError(f"{path}: has no config.json; give the folder of a Qwen-VL checkpoint")
    family.check_family(str(path), settings)
    try:
        config = QWenConfig.from_dict(settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: config.json describes no model: {error}") from error
    quantized.kind_of(config, path)  # one that nothing here can read is an error
    return config


def load_tokenizer(
    path: Folder,
    config: QWenConfig | None = None,
    cache_dir: str | None = None,
    extra_tokens: Sequence[str] | None = None,
) -> QWenTokenizer:
    """Return the tokenizer of a model folder, checked to fit the vocabulary and the image span of `config`.

    config: default that of the folder. extra_tokens: names for the next unnamed tokens of <|extra_0|>, <|extra_1|> ..,
    after those that the checkpoint names.
    """
    config = config if config is not None else load_config(path, cache_dir)
    if find_file(path, "qwen.tiktoken", cache_dir) is None:
        raise FileNotFoundError(f"{path}: has no qwen.tiktoken; copy it from the published checkpoint")
    read_json(path, "tokenizer_config.json", cache_dir)  # a damaged one gets a clear error here
    find_file(path, "chat_template.jinja", cache_dir)
    folder = local_folder(path, cache_dir=cache_dir)
    tokenizer = QWenTokenizer.from_pretrained(folder)
    if extra_tokens:
        tokenizer = QWenTokenizer.from_pretrained(folder, extra_tokens=[*tokenizer.extra_tokens, *extra_tokens])
    for leftover in ("is_local", "local_files_only"):  # of this call, which saving would write into the checkpoint
        tokenizer.init_kwargs.pop(leftover, None)
    family.check_tokenizer(str(path), tokenizer, config)
    return tokenizer


def load_model(
    path: Folder,
    *,
    dtype: LoadedDtype = torch.float32,
    attn_implementation: str = "sdpa",
    cache_dir: str | None = None,
    quantization: str | None = None,
    device: str | torch.device | None = None,
    fast_kernels: bool = False,
) -> QWenLMHeadModel:
    """Return the model of a model folder with all its weights, in `dtype` ("auto" keeps the file's).

    Quantized weights stay quantized; float weights become "nf4" or "int8" if `quantization` says so. Quantized weights
    are loaded onto `device` at once (None: CPU); `fast_kernels` are for inference only.
    Our classes are used whatever the checkpoint's auto_map says. Raise ValueError if weights are missing, left over,
    of another shape or damaged: a model with some random weights is never returned.
    """
    config = load_config(path, cache_dir)
    read_json(path, "generation_config.json", cache_dir)  # a damaged one would be replaced by defaults without a word
    weight_files(path, cache_dir)
    kind = quantized.chosen_kind(config, quantization, path)
    options: dict[str, Any] = {}
    if kind:
        config, options = quantized.loading_options(config, kind, dtype=dtype, device=device, fast=fast_kernels)
    if is_deepspeed_zero3_enabled() and not kind:
        check_fit(path, config, compare_with_files(path, config, cache_dir), cache_dir)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # the report of missing weights becomes an error below
    try:
        with reading_weights(path):
            model, report = QWenLMHeadModel.from_pretrained(
                local_folder(path, cache_dir=cache_dir),
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=True,  # reported below, together with the others
                output_loading_info=True,
                **options,
            )
    finally:
        hf_logging.set_verbosity(verbosity)
    reshaped = [str(key[0]) for key in report["mismatched_keys"]]
    misfit = fit.Misfit(set(report["missing_keys"]), set(report["unexpected_keys"]), reshaped)
    check_fit(path, config, misfit, cache_dir)
    return quantized.settle(model, fast=fast_kernels) if kind else model


def skeleton(path: Folder, config: QWenConfig, cache_dir: str | None = None) -> QWenLMHeadModel:
    """Return the model of a config without weights, on the meta device, its layers packed if the config says GPTQ.

    It shows what a run would train, so a wrong choice is refused before any weight is loaded.
    """
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
        if quantized.kind_of(config) == "gptq":
            model = quantized.replace_linears(model, config)
    model.generation_config = GenerationConfig.from_dict(read_json(path, "generation_config.json", cache_dir) or {})
    return model


def compare_with_files(path: Folder, config: QWenConfig, cache_dir: str | None = None) -> fit.Misfit:
    """Return the Misfit of the files' names and shapes: with DeepSpeed ZeRO-3 `from_pretrained` reports hardly any."""
    stored: dict[str, fit.Shape] = {}
    with reading_weights(path):
        for file in weight_files(path, cache_dir):
            stored |= {name: shape_of(tensor) for name, tensor in open_tensors(file)}
    return fit.compare(fit.shapes(skeleton(path, config, cache_dir).state_dict().items()), stored)


def check_fit(path: Folder, config: QWenConfig, misfit: fit.Misfit, cache_dir: str | None = None) -> None:
    """Raise ValueError if weights do not fit the config, the zero biases of published Int4 checkpoints excepted."""
    if misfit.left_over and quantized.kind_of(config) == "gptq":
        biases = read_tensors(path, filter(family.may_be_zero_bias, misfit.left_over), cache_dir)
        misfit = fit.without_zero_biases(misfit, biases.__getitem__)
    fit.check(path, misfit)


def read_tensors(path: Folder, names: Iterable[str], cache_dir: str | None) -> dict[str, torch.Tensor]:
    """Return some tensors of a checkpoint by name, as they are stored."""
    names = set(names)
    with reading_weights(path):
        tensors = (pair for file in weight_files(path, cache_dir) for pair in open_tensors(file))
        return {name: tensor[:] for name, tensor in tensors if name in names}


def check_files(path: Folder, cache_dir: str | None = None) -> None:
    """Raise ValueError if a weight file is cut off or damaged, FileNotFoundError if one is missing."""
    for file in weight_files(path, cache_dir):
        with reading_weights(file):
            next(open_tensors(file), None)


def fingerprint(path: Folder, cache_dir: str | None = None) -> str:
    """Return a hex digest that identifies the weights of a checkpoint, the same however they are sharded.

    It covers the name, dtype, shape and the first and last values of each tensor, not all bytes, so 19 GB take seconds.
    """
    lines: list[str] = []
    with reading_weights(path):
        for file in weight_files(path, cache_dir):
            lines.extend(f"{name} {tensor_digest(tensor)}" for name, tensor in open_tensors(file))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def tensor_digest(tensor: StoredTensor) -> str:
    """Return the digest of dtype, shape and a sample of values of a tensor or a safetensors slice."""
    shape = shape_of(tensor)
    ends = [tensor[...]] if len(shape) == 0 else [tensor[:1], tensor[-1:]]
    digest = hashlib.sha256(str(shape).encode())
    for part in ends:
        flat = part.reshape(-1)
        sample = torch.cat([flat[:SAMPLED_VALUES], flat[-SAMPLED_VALUES:]]).contiguous()
        digest.update(str(sample.dtype).encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
