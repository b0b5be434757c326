"""The files of a model folder or hub name: finding, reading, and one clear error for damage."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qwen_vl.files import read_object
from qwen_vl.hubs import download

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's settings; a folder that has one holds an adapter and not a model
ADAPTER_BASE = "base.json"  # the base that an adapter was trained on
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # each also in shards, listed in an index; first one wins

Folder = str | os.PathLike[str]  # a model folder or a hub name
StoredTensor = Any  # a tensor or a safetensors slice: both have a dtype, a shape and indexing


@contextmanager
def reading_weights(path: Folder) -> Iterator[None]:
    """Turn every error of a damaged weight file within this block into one clear ValueError that names `path`."""
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


def read_json(path: Folder, name: str, cache_dir: str | None = None) -> dict[str, Any] | None:
    """Return the content of a JSON file of a model folder as a dict, None if there is no such file.

    Raise ValueError if the file is damaged or holds no object, FileNotFoundError if there is no such folder.
    """
    file = find_file(path, name, cache_dir)
    return None if file is None else read_object(file, cure="download the checkpoint again")


def read_json_or_none(folder: Folder, name: str) -> dict[str, Any] | None:
    """Return the content of a JSON file of a local folder, None if it is absent or damaged.

    It is for files that may be damaged, such as those of a checkpoint that was not written to its end.
    """
    if not os.path.isdir(folder):
        return None
    try:
        return read_json(folder, name)
    except (OSError, ValueError):
        return None


def find_file(path: Folder, name: str, cache_dir: str | None = None) -> str | None:
    """Return the local path of a file of a model folder or hub name, downloaded if need be; None if it has none.

    Raise FileNotFoundError if there is no such folder.
    """
    if os.path.isdir(path):
        local = Path(path) / name
        return str(local) if local.is_file() else None
    return download.find_file(path, name, cache_dir)


def local_folder(path: Folder, *, cache_dir: str | None = None) -> str:
    """Return the local folder of a model folder or hub name, in which the files are that were asked for so far.

    Raise FileNotFoundError if there is neither a model nor an adapter.
    """
    if os.path.isdir(path):
        return os.fspath(path)
    for name in ("config.json", ADAPTER_CONFIG):
        if folder := download.folder_of(path, name, cache_dir):
            return folder
    raise FileNotFoundError(f"{path}: has neither config.json nor {ADAPTER_CONFIG}; give a Qwen-VL model or adapter")


def weight_files(path: Folder, cache_dir: str | None = None) -> list[str]:
    """Return the local paths of all weight files of a model folder; raise FileNotFoundError if one is missing."""
    for name in WEIGHT_FILES:
        whole, index = find_file(path, name, cache_dir), read_json(path, f"{name}.index.json", cache_dir)
        if whole is not None:
            return [whole]
        if index is not None:
            return [find_shard(path, shard, name, cache_dir) for shard in sorted(set(index["weight_map"].values()))]
    refuse_adapter(path)
    raise FileNotFoundError(f"{path}: no model.safetensors and no pytorch_model.bin; give a complete checkpoint folder")


def find_shard(path: Folder, shard: str, whole: str, cache_dir: str | None) -> str:
    """Return the local path of a shard; raise FileNotFoundError if it is missing."""
    file = find_file(path, shard, cache_dir)
    if file is None:
        raise FileNotFoundError(
            f"{path}: {shard} is listed in {whole}.index.json but missing; download the checkpoint again"
        )
    return file


def is_adapter(path: Folder) -> bool:
    """Return whether a local folder holds an adapter and not a model."""
    return Path(path, ADAPTER_CONFIG).is_file()


def refuse_adapter(path: Folder) -> None:
    """Raise ValueError for a folder that holds an adapter instead of a model."""
    if is_adapter(path):
        base = (read_json(path, ADAPTER_BASE) or {}).get("name", "MODEL")
        raise ValueError(
            f"{path}: is an adapter: merge it first (qwen-vl merge {path} MERGED) and give the merged model. To train "
            f"it further, give it as --lora_weight_path with --use_lora, and its base: --model_name_or_path {base}"
        )


def open_tensors(file: str) -> Iterator[tuple[str, StoredTensor]]:
    """Yield (name, object with dtype, shape and slices) of one weight file, without reading it whole."""
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                yield name, handle.get_slice(name)
        return
    yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()


def shape_of(tensor: StoredTensor) -> list[int]:
    """Return the shape of a tensor or a safetensors slice, as a list."""
    return list(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
