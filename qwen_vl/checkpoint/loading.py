"""Weights into memory: tokenizer, configuration, model in the wanted dtype, and the fingerprint of a base."""

import hashlib
import json
import logging
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import quantization as quantized

logger = logging.getLogger(__name__)

SAMPLED_VALUES = 1024  # of the start and of the end of each tensor that a fingerprint reads
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # each also in shards, listed in an index; first one wins


def load_config(path, cache_dir=None):
    """The QWenConfig of a checkpoint folder or hub name; ValueError for another architecture, OSError if missing."""
    if not os.path.isdir(path):
        logger.warning("%s is no folder here; asking the download cache and the hub for it", path)
    settings = read_json(path, "config.json", cache_dir)
    if settings is None:
        refuse_adapter(path)
        raise FileNotFoundError(f"{path}: has no config.json; give the folder of a Qwen-VL checkpoint")
    family.check_family(path, settings)
    try:
        config = QWenConfig.from_dict(settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: config.json describes no model: {error}") from error
    quantized.kind_of(config, path)  # one that nothing here can read is an error
    return config


def load_tokenizer(path, config=None, cache_dir=None, extra_tokens=None):
    """The QWenTokenizer of a checkpoint; with `config`, checked to fit its vocabulary and its picture span.

    extra_tokens: further names for the tokens <|extra_0|>, <|extra_1|> .., beside those that the checkpoint has given.
    """
    config = config if config is not None else load_config(path, cache_dir)
    if find_file(path, "qwen.tiktoken", cache_dir) is None:
        raise FileNotFoundError(f"{path}: has no qwen.tiktoken; copy it from the published checkpoint")
    read_json(path, "tokenizer_config.json", cache_dir)  # a damaged one gets a clear error here
    tokenizer = QWenTokenizer.from_pretrained(path, cache_dir=cache_dir)
    if extra_tokens:
        names = [*tokenizer.extra_tokens, *extra_tokens]
        tokenizer = QWenTokenizer.from_pretrained(path, cache_dir=cache_dir, extra_tokens=names)
    for leftover in ("is_local", "local_files_only"):  # of this call, which saving would write into the checkpoint
        tokenizer.init_kwargs.pop(leftover, None)
    family.check_tokenizer(path, tokenizer, config)
    return tokenizer


def load_model(
    path,
    *,
    dtype=torch.float32,
    attn_implementation="sdpa",
    cache_dir=None,
    quantization=None,
    device=None,
    fast_kernels=False,
):
    """The QWenLMHeadModel of a checkpoint with all its weights, in `dtype` ("auto" keeps the file's).

    Weights that are stored quantised stay so; float ones become "nf4" or "int8" if `quantization` says so. Quantised
    weights are loaded onto `device` at once (None: CPU), where `fast_kernels` are for answering, not for training.
    Our classes are used whatever the checkpoint's auto_map says. Raises ValueError when weights are missing, left
    over, of another shape or damaged: a model with some random weights is never returned.
    """
    config = load_config(path, cache_dir)
    read_json(path, "generation_config.json", cache_dir)  # a damaged one would be replaced by defaults without a word
    weight_files(path, cache_dir)
    kind, options = quantized.chosen_kind(config, quantization, path), {}
    if kind:
        config, options = quantized.loading_options(config, kind, dtype=dtype, device=device, fast=fast_kernels)
    if is_deepspeed_zero3_enabled() and not kind:
        check_report(path, config, compare_with_files(path, config, cache_dir), cache_dir)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # the report of missing weights becomes an error below
    try:
        with reading_weights(path):
            model, report = QWenLMHeadModel.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                cache_dir=cache_dir,
                ignore_mismatched_sizes=True,  # reported below, together with the others
                output_loading_info=True,
                **options,
            )
    finally:
        hf_logging.set_verbosity(verbosity)
    check_report(path, config, report, cache_dir)
    return quantized.settle(model, fast=fast_kernels) if kind else model


def skeleton(path, config, cache_dir=None):
    """The model of a config without weights, on the meta device, its layers packed where the config says GPTQ.

    What would be trained on it can be decided, and refused, before any weight is loaded.
    """
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
        if quantized.kind_of(config) == "gptq":
            model = quantized.replace_linears(model, config)
    model.generation_config = GenerationConfig.from_dict(read_json(path, "generation_config.json", cache_dir) or {})
    return model


def compare_with_files(path, config, cache_dir=None):
    """What `from_pretrained` would report, by names and shapes: with DeepSpeed ZeRO-3 it reports hardly anything."""
    wanted = {name: list(tensor.shape) for name, tensor in skeleton(path, config, cache_dir).state_dict().items()}
    stored = {}
    with reading_weights(path):
        for file in weight_files(path, cache_dir):
            stored |= {name: shape_of(tensor) for name, tensor in open_tensors(file)}
    return {
        "missing_keys": wanted.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - wanted.keys(),
        "mismatched_keys": [(name,) for name in wanted.keys() & stored.keys() if wanted[name] != stored[name]],
    }


def check_report(path, config, report, cache_dir=None):
    """None, or a ValueError for what the report of `from_pretrained` says about weights that do not fit the config.

    The zero biases that published Int4 checkpoints have, and the float model has not, fit.
    """
    left_over = set(report["unexpected_keys"])
    left_over -= zeros_among(quantized.zero_biases(left_over, config), path, cache_dir)
    problems = {
        "missing": sorted(report["missing_keys"]),
        "left over": sorted(left_over),
        "of another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
    }
    wrong = [f"{len(names)} {what} ({', '.join(names[:3])} ..)" for what, names in problems.items() if names]
    if wrong:
        raise ValueError(
            f"{path}: the weights do not fit config.json: {'; '.join(wrong)}; use the files of one checkpoint"
        )


def zeros_among(names, path, cache_dir=None):
    """Those of the tensor `names` that hold nothing but zeros in a checkpoint."""
    if not names:
        return set()
    tensors = (pair for file in weight_files(path, cache_dir) for pair in open_tensors(file))
    return {name for name, tensor in tensors if name in names and not tensor[:].any()}


@contextmanager
def reading_weights(path):
    """Within this block, a damaged file of tensors below `path` is one clear ValueError."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: a file is damaged or holds more than tensors, and code in it is never run; get it again"
        ) from error
    except (SafetensorError, RuntimeError, KeyError, EOFError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path}: the weights cannot be read ({reason}); if a file is damaged, get it again"
        ) from error


def read_json(path, name, cache_dir=None):
    """The content of a checkpoint's JSON file as a dict, or None if there is no such file; ValueError if damaged."""
    file = find_file(path, name, cache_dir)
    if file is None:
        return None
    with open(file, encoding="utf-8") as handle:
        try:
            content = json.load(handle)
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error}); download the checkpoint again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}, not an object; download the checkpoint again")
    return content


def find_file(path, name, cache_dir=None):
    """Local path of a checkpoint's file, or None; a hub name is looked up in the cache and then downloaded.

    Raises FileNotFoundError when there is no such checkpoint.
    """
    if os.path.isdir(path):
        file = Path(path) / name
        return str(file) if file.is_file() else None
    if os.path.exists(path) or str(path).count("/") != 1 or str(path).startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{path}: no such checkpoint folder; give a folder or a hub name such as Qwen/Qwen-VL-Chat"
        )
    try:
        file = cached_file(path, name, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{path}: no folder here, and not to be had from the hub ({reason}); check the name and the network, "
            "or download it elsewhere and give the folder"
        ) from error
    if file is None and name == "config.json":
        raise FileNotFoundError(
            f"{path}: no folder here, not downloaded yet, and the hub cannot be reached or has no such checkpoint; "
            "check the name and the network, or download it elsewhere and give the folder"
        )
    return file


def weight_files(path, cache_dir=None):
    """Local paths of all weight files of a checkpoint; FileNotFoundError names the one that is missing."""
    for name in WEIGHT_FILES:
        whole, index = find_file(path, name, cache_dir), read_json(path, f"{name}.index.json", cache_dir)
        if whole is not None:
            return [whole]
        if index is not None:
            shards = {shard: find_file(path, shard, cache_dir) for shard in sorted(set(index["weight_map"].values()))}
            missing = [shard for shard, local in shards.items() if local is None]
            if missing:
                raise FileNotFoundError(
                    f"{path}: {missing[0]} is listed in {name}.index.json but missing; download the checkpoint again"
                )
            return list(shards.values())
    refuse_adapter(path)
    raise FileNotFoundError(f"{path}: no model.safetensors and no pytorch_model.bin; give a complete checkpoint folder")


def refuse_adapter(path):
    """Raise ValueError for a folder that holds an adapter, where a model is needed."""
    if Path(path, "adapter_config.json").is_file():
        base = (read_json(path, "base.json") or {}).get("name", "MODEL")
        raise ValueError(
            f"{path}: is an adapter: merge it first (qwen-vl merge {path} MERGED) and give the merged model. To train "
            f"it further, give it as --lora_weight_path with --use_lora, and its base: --model_name_or_path {base}"
        )


def check_files(path, cache_dir=None):
    """None, or what `weight_files` raises, or a ValueError naming a file that is cut off or damaged."""
    for file in weight_files(path, cache_dir):
        with reading_weights(file):
            next(open_tensors(file), None)


def fingerprint(path, cache_dir=None):
    """A hex digest that identifies the weights of a checkpoint, the same however they are sharded.

    Reads the name, dtype, shape and the first and last values of each tensor, not all bytes: 19 GB take seconds.
    """
    lines = []
    with reading_weights(path):
        for file in weight_files(path, cache_dir):
            lines.extend(f"{name} {tensor_digest(tensor)}" for name, tensor in open_tensors(file))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def open_tensors(file):
    """Yields (name, object with dtype, shape and slices) of one weight file, without reading it whole."""
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                yield name, handle.get_slice(name)
        return
    yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()


def shape_of(tensor):
    """The shape of a tensor or a safetensors slice, as a list."""
    return list(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


def tensor_digest(tensor):
    """Digest of dtype, shape and a sample of values of a tensor or a safetensors slice."""
    shape = shape_of(tensor)
    ends = [tensor[...]] if len(shape) == 0 else [tensor[:1], tensor[-1:]]
    digest = hashlib.sha256(str(shape).encode())
    for part in ends:
        flat = part.reshape(-1)
        sample = torch.cat([flat[:SAMPLED_VALUES], flat[-SAMPLED_VALUES:]]).contiguous()
        digest.update(str(sample.dtype).encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
