"""Comparison of two models: logits, greedy answers and files. `qwen-vl verify A B`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from qwen_vl.adapters import inference, on_disk
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import quantization
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.files import find_file, local_folder
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.data.chatml import Record
from qwen_vl.evaluation import generation, probe_prompts
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.image_loading_qwen import SearchDirs
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from .comparison import LAST_POSITIONS, TOLERANCE, logits

QUANTIZED = 0.5  # the tolerance if one of the two is quantized; more than this is broken, not only coarse
JSON_FILES = ("generation_config.json", "tokenizer_config.json")
PASSING = {"transformers_version", "_from_model_config", "processor_class", "added_tokens_decoder"}  # of no effect


class Outcome(NamedTuple):
    """The ids, logits and answers of a model for some prompts."""

    ids: list[list[int]]
    logits: list[torch.Tensor]  # each [positions, vocab]
    answers: list[str]
    dtype: torch.dtype
    is_quantized: bool


def outcome(
    folder: ModelFolder,
    records: Sequence[Record],
    *,
    search_dirs: SearchDirs = (),
    dtype: LoadedDtype = "auto",
    device: str | torch.device = "cpu",
    from_disk: bool = False,
    max_new_tokens: int = 32,
) -> Outcome:
    """Return the Outcome of a checkpoint or an adapter. `from_disk` reads its weights block by block, when used.

    The model is freed afterwards. Raise the errors of loading.
    """
    if from_disk:
        model, tokenizer, is_quantized = open_on_disk(folder, dtype, device)
    else:
        model, tokenizer = inference.load(folder, dtype=dtype, device=device)
        is_quantized = quantization.kind_of(model.config) is not None
    size = family.image_size(model.config)
    inputs = [probe_prompts.inputs_of(record, tokenizer, size, search_dirs) for record in records]
    found = [logits(model, one, LAST_POSITIONS)[0] for one in inputs]
    answers = generation.answer(model, tokenizer, records, search_dirs=search_dirs, max_new_tokens=max_new_tokens)
    kept_dtype = family.model_dtype(model)
    return Outcome([one["input_ids"][0].tolist() for one in inputs], found, answers, kept_dtype, is_quantized)


def open_on_disk(
    folder: ModelFolder, dtype: LoadedDtype, device: str | torch.device
) -> tuple[QWenLMHeadModel, QWenTokenizer, bool]:
    """Return (model, tokenizer, whether it is quantized) of a checkpoint or an adapter, whose weights stay on disk."""
    adapter = Adapter.open(folder.path) if folder.is_adapter else None
    base = adapter.find_base() if adapter else folder
    disk = DiskModel(base)
    tokenizer = adapter.load_tokenizer(base) if adapter else folder.tokenizer
    dtype = disk.weights.dtype(family.HEAD_WEIGHT) if dtype == "auto" else dtype
    if adapter:
        on_disk.adapt(disk, adapter, dtype=dtype)
    return disk.stream(dtype=dtype, device=device), tokenizer, disk.weights.is_quantized


def tolerance_for(first: Outcome, second: Outcome) -> float:
    """Return the largest difference between two Outcomes that counts as rounding."""
    if first.is_quantized != second.is_quantized:
        return QUANTIZED
    return max(TOLERANCE[first.dtype], TOLERANCE[second.dtype])


def different_files(first: ModelFolder, second: ModelFolder) -> list[str]:
    """Return one line for each difference: quantization, settings of generation and tokenizer, files of code.

    An adapter has neither code nor settings, so only its vocabulary is compared.
    """
    lines: list[str] = []
    has_adapter = first.is_adapter or second.is_adapter
    if not has_adapter and first.quantization != second.quantization:
        lines.append(f"config.json: quantization {first.quantization} / {second.quantization}")
    for name in () if has_adapter else JSON_FILES:
        one, other = first.read_json(name), second.read_json(name)
        if one is None or other is None:
            if one is not other:
                lines.append(f"{name}: only in {second if one is None else first}")
            continue
        keys = [key for key in sorted((one.keys() | other.keys()) - PASSING) if one.get(key) != other.get(key)]
        lines += [
            f"{name}: {key} {one.get(key)!r} / {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)
        ]
    folders = [] if has_adapter else [first, second]
    code = [Path(local_folder(folder)).glob("*.py") for folder in folders]
    digests = [{file.name: digest(file) for file in files} for files in code] or [{}, {}]
    for name in sorted(digests[0].keys() | digests[1].keys()):
        if digests[0].get(name) != digests[1].get(name):
            lines.append(f"{name}: {'differs' if all(name in one for one in digests) else 'only in one of them'}")
    tokens = [digest(find_file(path, "qwen.tiktoken")) for path in (first, second)]
    return lines + ["qwen.tiktoken: differs"] * (tokens[0] != tokens[1])


def digest(file: str | Path | None) -> str | None:
    """Return the sha256 of a file's bytes, None if there is no file."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
