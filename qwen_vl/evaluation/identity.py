"""Which model answers: digests of all that its answers depend on, read from its files, without loading it."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen_vl.adapters.adapter import WEIGHTS_FILE, Adapter
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.files import ADAPTER_CONFIG, StoredTensor, open_tensors, reading_weights, shape_of, weight_files
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.families import v1 as family
from qwen_vl.model.tokenization_qwen import QWenTokenizer

NO_CONTENT = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
THREADS = 4


@dataclass(frozen=True)
class ModelIdentity:
    """Which model answers: what people call it, and the content that its answers depend on, beside the dtype."""

    label: str  # the folder's name, for people
    path: str
    fingerprint: str  # of the weights, for an adapter of its own and its base's; of a server: its address and model
    tokenizer: str  # SHA-256 of what decides ids
    is_chat: bool
    kind: str  # "model", "adapter", "server", or how stored weights are quantized: "gptq", "nf4", "int8"
    dtype: str  # in which it computes


def identify(
    path: str | os.PathLike[str] | ModelFolder,
    *,
    dtype: LoadedDtype | str = "auto",
    base: str | None = None,
    trust_base: bool = False,
) -> ModelIdentity:
    """Return the identity of a model folder, a hub name or an adapter, as `LocalModel.load` would load it.

    Every byte of the weights is read once. Raise OSError or ValueError if it cannot be read or is no model.
    """
    folder = whole = ModelFolder.open(path)
    if folder.is_adapter:
        adapter = Adapter.open(folder.path)
        whole = adapter.find_base(base, trust=trust_base)
        tokenizer = adapter.load_tokenizer(whole)
    else:
        tokenizer = folder.tokenizer
    if dtype == "auto":
        dtype = whole.config.dtype or whole.tensors.dtype(family.HEAD_WEIGHT)
    return ModelIdentity(
        label=label_of(folder.path),
        path=folder.path,
        fingerprint=fingerprint(folder, base=base, trust_base=trust_base),
        tokenizer=tokenizer_digest(tokenizer),
        is_chat=folder.is_adapter or folder.is_chat,  # adapters are trained in the chat format
        kind="adapter" if folder.is_adapter else (folder.quantization or "model"),
        dtype=str(dtype).removeprefix("torch."),
    )


def fingerprint(folder: ModelFolder, *, base: str | None = None, trust_base: bool = False) -> str:
    """Return the SHA-256 of all weights and settings of a model folder, or of an adapter and its base.

    Every byte counts, as a training may change few; how weights are sharded does not. Raise OSError or ValueError if
    they cannot be read.
    """
    if folder.is_adapter:
        adapter = Adapter.open(folder.path)
        settings = json.loads((adapter.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        own = content_digest([str(adapter.folder / WEIGHTS_FILE)])
        below = fingerprint(adapter.find_base(base, trust=trust_base))
        return _digest([below, own, adapter.quantization, {**settings, "base_model_name_or_path": None}])
    settings = folder.read_json("config.json") or {}
    settings = {key: value for key, value in settings.items() if key not in NO_CONTENT}
    return _digest([content_digest(weight_files(folder.path, folder.cache_dir)), settings])


def content_digest(files: Iterable[str]) -> str:
    """Return the SHA-256 of the name, dtype, shape and bytes of all tensors in weight files."""

    def lines(file: str) -> list[str]:
        with reading_weights(file):
            return [f"{name} {_tensor_digest(stored)}" for name, stored in open_tensors(file)]

    with ThreadPoolExecutor(THREADS) as pool:
        return _digest(sorted(line for part in pool.map(lines, files) for line in part))


def tokenizer_digest(tokenizer: QWenTokenizer) -> str:
    """Return the SHA-256 of what decides the ids of a text: ranks, special tokens and the length of an image span."""
    ranks = hashlib.sha256(b"".join(token + b"\n" for token in tokenizer.mergeable_ranks)).hexdigest()
    return _digest([ranks, sorted(tokenizer.special_tokens.items()), tokenizer.image_span_tokens])


def label_of(path: str) -> str:
    """Return what people call a model: the name of its folder, or the last part of its hub name."""
    return Path(path).resolve().name if Path(path).is_dir() else path.rstrip("/").rpartition("/")[2]


def _tensor_digest(stored: StoredTensor) -> str:
    """Return the digest of dtype, shape and bytes of a tensor or a safetensors slice."""
    shape = shape_of(stored)
    tensor = stored[:] if shape else stored[...]
    digest = hashlib.sha256(f"{tensor.dtype} {shape}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(values: object) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
