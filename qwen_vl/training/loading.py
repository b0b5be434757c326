"""Weights into memory: tokenizer, configuration, model in the wanted dtype, and the fingerprint of a base."""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer

SAMPLED_VALUES = 1024  # of the start and of the end of each tensor that a fingerprint reads
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def load_config(path, cache_dir=None):
    """The QWenConfig of a checkpoint folder or hub name; ValueError for another architecture, OSError if missing."""
    if not os.path.isdir(path) and (
        os.path.exists(path) or str(path).count("/") != 1 or str(path).startswith((".", "/"))
    ):
        raise FileNotFoundError(
            f"{path}: no such checkpoint folder; give a folder or a hub name such as Qwen/Qwen-VL-Chat"
        )
    file = find_file(path, "config.json", cache_dir)
    if file is None:
        raise FileNotFoundError(f"{path}: has no config.json; give the folder of a Qwen-VL checkpoint")
    with open(file, encoding="utf-8") as handle:
        try:
            settings = json.load(handle)
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error}); download the checkpoint again") from error
    if settings.get("model_type") != QWenConfig.model_type or "visual" not in settings:
        kind = settings.get("model_type", "unknown") + ("" if "visual" in settings else " without a vision tower")
        raise ValueError(
            f"{path}: a checkpoint of type {kind}; this tool works with Qwen-VL (model_type qwen, with `visual`)"
        )
    return QWenConfig.from_dict(settings)


def load_tokenizer(path, config=None, cache_dir=None):
    """The QWenTokenizer of a checkpoint; with `config`, checked to fit its vocabulary and its picture span."""
    config = config if config is not None else load_config(path, cache_dir)
    file = find_file(path, "qwen.tiktoken", cache_dir)
    if file is None:
        raise FileNotFoundError(f"{path}: has no qwen.tiktoken; copy it from the published checkpoint")
    tokenizer = QWenTokenizer.from_pretrained(path, cache_dir=cache_dir)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{path}: the vocabulary has {len(tokenizer)} tokens, the model has {config.vocab_size} rows; "
            "use the qwen.tiktoken that belongs to the weights"
        )
    if tokenizer.img_start_id != config.visual["image_start_id"]:
        raise ValueError(
            f"{path}: <img> is token {tokenizer.img_start_id}, config.visual.image_start_id is "
            f"{config.visual['image_start_id']}; use the qwen.tiktoken that belongs to the weights"
        )
    if tokenizer.image_span_tokens != config.image_span_tokens:
        raise ValueError(
            f"{path}: image_span_tokens is {tokenizer.image_span_tokens} in tokenizer_config.json, visual.n_queries is "
            f"{config.image_span_tokens} in config.json; they must be equal"
        )
    return tokenizer


def load_model(path, *, dtype=torch.float32, attn_implementation="sdpa", cache_dir=None):
    """The QWenLMHeadModel of a checkpoint with all its weights, in `dtype` ("auto" keeps the file's).

    Our classes are used whatever the checkpoint's auto_map says. Raises ValueError when weights are missing, left
    over or of another shape: a model with some random weights is never returned.
    """
    config = load_config(path, cache_dir)
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # the report of missing weights becomes an error below
    try:
        model, report = QWenLMHeadModel.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attn_implementation,
            cache_dir=cache_dir,
            output_loading_info=True,
        )
    finally:
        hf_logging.set_verbosity(verbosity)
    problems = {name: sorted(map(str, report[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    wrong = [
        f"{len(keys)} {name.replace('_', ' ')} ({', '.join(keys[:3])} ..)" for name, keys in problems.items() if keys
    ]
    if wrong:
        raise ValueError(f"{path}: the weights do not fit the configuration: {'; '.join(wrong)}; download it again")
    return model


def find_file(path, name, cache_dir=None):
    """Local path of a checkpoint's file, or None; a hub name is looked up in the cache and then downloaded."""
    if os.path.isdir(path):
        file = Path(path) / name
        return str(file) if file.is_file() else None
    return cached_file(path, name, cache_dir=cache_dir, _raise_exceptions_for_missing_entries=False)


def weight_files(path, cache_dir=None):
    """Local paths of all weight files of a checkpoint; FileNotFoundError names the one that is missing."""
    for index in WEIGHT_INDEXES:
        file = find_file(path, index, cache_dir)
        if file is None:
            continue
        with open(file, encoding="utf-8") as handle:
            names = sorted(set(json.load(handle)["weight_map"].values()))
        found = {name: find_file(path, name, cache_dir) for name in names}
        missing = [name for name, local in found.items() if local is None]
        if missing:
            raise FileNotFoundError(
                f"{path}: {missing[0]} is listed in {index} but missing; download the checkpoint again"
            )
        return list(found.values())
    for name in WEIGHT_FILES:
        file = find_file(path, name, cache_dir)
        if file is not None:
            return [file]
    raise FileNotFoundError(f"{path}: no model.safetensors and no pytorch_model.bin; give a complete checkpoint folder")


def fingerprint(path, cache_dir=None):
    """A hex digest that identifies the weights of a checkpoint, the same however they are sharded.

    Reads the name, dtype, shape and the first and last values of each tensor, not all bytes: 19 GB take seconds.
    """
    lines = []
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


def tensor_digest(tensor):
    """Digest of dtype, shape and a sample of values of a tensor or a safetensors slice."""
    shape = list(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
    ends = [tensor[...]] if len(shape) == 0 else [tensor[:1], tensor[-1:]]
    digest = hashlib.sha256(str(shape).encode())
    for part in ends:
        flat = part.reshape(-1)
        sample = torch.cat([flat[:SAMPLED_VALUES], flat[-SAMPLED_VALUES:]]).contiguous()
        digest.update(str(sample.dtype).encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
