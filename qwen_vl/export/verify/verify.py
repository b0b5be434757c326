"""Comparison of two models: logits, greedy answers and files. `qwen-vl verify A B`."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from qwen_vl.adapters import attach, on_disk
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.data.chatml import Record
from qwen_vl.evaluation import generation, probe_prompts
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.model.chat_qwen import make_context
from qwen_vl.model.image_loading_qwen import SearchDirs
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.tokenization_qwen import QWenTokenizer

QUESTION = "Picture 1: <img></img>\nWhat is in the picture? 图中有什么？"
# The largest difference that counts as rounding, as a share of the largest logit. Merging rounds each weight once more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
QUANTIZED = 0.5  # the same if one of the two is quantized; more than this is broken, not only coarse
LAST_POSITIONS = 64  # of a prompt, whose logits are compared; all of them follow its images
JSON_FILES = ("generation_config.json", "tokenizer_config.json")
PASSING = {"transformers_version", "_from_model_config", "processor_class", "added_tokens_decoder"}  # of no effect

ModelInputs = dict[str, torch.Tensor]  # input_ids [1, length] and, with images, pixel_values [images, 3, size, size]
Opened = tuple[QWenLMHeadModel, QWenTokenizer, bool]  # model, tokenizer, whether it is quantized


class Difference(NamedTuple):
    """The difference of logits, as shares of the largest of the first, and how often the likeliest token agrees."""

    largest: float
    mean: float
    same: float = 1.0

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.largest:.2e}, mean {self.mean:.2e} (of the largest logit); "
            f"the likeliest token is the same at {self.same:.1%} of positions"
        )


class Outcome(NamedTuple):
    """The ids, logits and answers of a model for some prompts."""

    ids: list[list[int]]
    logits: list[torch.Tensor]  # each [positions, vocab]
    answers: list[str]
    dtype: torch.dtype
    is_quantized: bool


def image_prompt(tokenizer: QWenTokenizer, config: QWenConfig) -> ModelInputs:
    """Return input_ids [1, length] and pixel_values [1, 3, size, size] of a question about a generated image."""
    size = family.image_size(config)
    image = Image.merge("RGB", probe_prompts.gradients(size))
    return {
        "input_ids": torch.tensor([make_context(tokenizer, QUESTION).ids]),
        "pixel_values": pixels(image, size)[None],
    }


@torch.no_grad()
def logits(model: QWenLMHeadModel, inputs: ModelInputs, last: int = 0) -> torch.Tensor:
    """Return float32 logits [1, length, vocab] in evaluation mode, of the `last` positions alone if given."""
    inputs = {key: value.to(model.device) for key, value in inputs.items()}
    return model.eval()(**inputs, logits_to_keep=last).logits.float().cpu()


def logits_from_disk(
    path: str | Path | ModelFolder,
    all_inputs: Sequence[ModelInputs],
    *,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    device: str | torch.device = "cpu",
) -> list[torch.Tensor]:
    """Return the `logits` of a model folder, or of it and an adapter, for each of some inputs, block by block.

    Memory is that of one block. A ModelFolder that is open already is not read again.
    """
    disk = DiskModel(path)
    if adapter:
        on_disk.adapt(disk, adapter, dtype=dtype)
    model = disk.stream(dtype=dtype, device=device)
    return [logits(model, inputs, LAST_POSITIONS) for inputs in all_inputs]


def compare(first: torch.Tensor | list[torch.Tensor], second: torch.Tensor | list[torch.Tensor]) -> Difference:
    """Return the Difference of two logit tensors, or of two lists: the largest of all, the mean of their means."""
    if isinstance(first, list) or isinstance(second, list):
        found = [compare(*pair) for pair in zip(first, second, strict=True)]
        largest = max(found, key=lambda one: one.largest if one.largest == one.largest else float("inf")).largest
        return Difference(largest, mean(one.mean for one in found), mean(one.same for one in found))
    scale = first.abs().max()
    apart = (first - second).abs()
    same = (first.argmax(-1) == second.argmax(-1)).float().mean()
    return Difference((apart.max() / scale).item(), (apart.mean() / scale).item(), same.item())


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean of some numbers."""
    values = list(values)
    return sum(values) / len(values)


def check(difference: Difference, dtype: torch.dtype, what: str) -> None:
    """Raise ValueError if the difference is larger than rounding in `dtype` explains."""
    if not difference.largest <= TOLERANCE[dtype]:  # also true for NaN
        raise ValueError(f"{what}: {difference}; more than {TOLERANCE[dtype]:g}, which rounding in {dtype} explains")


def outcome(
    path: str | Path,
    records: Sequence[Record],
    *,
    search_dirs: SearchDirs = (),
    dtype: LoadedDtype = "auto",
    device: str | torch.device = "cpu",
    from_disk: bool = False,
    max_new_tokens: int = 32,
) -> Outcome:
    """Return the Outcome of a checkpoint or adapter folder. `from_disk` reads its weights block by block, when used.

    The model is freed afterwards. Raise the errors of loading.
    """
    model, tokenizer, is_quantized = (open_on_disk if from_disk else open_in_memory)(path, dtype, device)
    size = family.image_size(model.config)
    inputs = [probe_prompts.inputs_of(record, tokenizer, size, search_dirs) for record in records]
    found = [logits(model, one, LAST_POSITIONS)[0] for one in inputs]
    answers = generation.answer(model, tokenizer, records, search_dirs=search_dirs, max_new_tokens=max_new_tokens)
    kept_dtype = family.model_dtype(model)
    return Outcome([one["input_ids"][0].tolist() for one in inputs], found, answers, kept_dtype, is_quantized)


def open_in_memory(path: str | Path, dtype: LoadedDtype, device: str | torch.device) -> Opened:
    """Return (model, tokenizer, whether it is quantized) of a checkpoint or an adapter folder."""
    folder = ModelFolder.open(path)
    if folder.is_adapter:
        model, tokenizer = attach.load_adapted(path, dtype=dtype)
    else:
        model, tokenizer = loading.load_model(path, dtype=dtype), folder.tokenizer
    is_quantized = bool(model.config.to_dict().get("quantization_config"))
    return (model if is_quantized else model.to(device)), tokenizer, is_quantized


def open_on_disk(path: str | Path, dtype: LoadedDtype, device: str | torch.device) -> Opened:
    """Return the same as `open_in_memory`; the weights stay on disk."""
    folder = ModelFolder.open(path)
    adapter = Adapter.open(path) if folder.is_adapter else None
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


def different_files(first: str | Path, second: str | Path) -> list[str]:
    """Return one line for each setting of generation and tokenizer, and for each file of code, that differs.

    An adapter has neither code nor settings, so only its vocabulary is compared.
    """
    lines: list[str] = []
    has_adapter = any(ModelFolder.open(path).is_adapter for path in (first, second))
    for name in () if has_adapter else JSON_FILES:
        one, other = (loading.read_json(path, name) for path in (first, second))
        if one is None or other is None:
            if one is not other:
                lines.append(f"{name}: only in {second if one is None else first}")
            continue
        keys = [key for key in sorted((one.keys() | other.keys()) - PASSING) if one.get(key) != other.get(key)]
        lines += [
            f"{name}: {key} {one.get(key)!r} / {other.get(key)!r}" for key in keys if one.get(key) != other.get(key)
        ]
    folders = [] if has_adapter else [first, second]
    digests = [{file.name: digest(file) for file in Path(path).glob("*.py")} for path in folders] or [{}, {}]
    for name in sorted(digests[0].keys() | digests[1].keys()):
        if digests[0].get(name) != digests[1].get(name):
            lines.append(f"{name}: {'differs' if all(name in one for one in digests) else 'only in one of them'}")
    tokens = [digest(loading.find_file(path, "qwen.tiktoken")) for path in (first, second)]
    return lines + ["qwen.tiktoken: differs"] * (tokens[0] != tokens[1])


def digest(file: str | Path | None) -> str | None:
    """Return the sha256 of a file's bytes, None if there is no file."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
