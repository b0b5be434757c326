"""GPTQ of a whole decoder, one block in memory at a time; finished blocks are kept on disk."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from qwen_vl.checkpoint import int4_layout
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.files import read_json
from qwen_vl.data.collator import Batch
from qwen_vl.families import v1 as family
from qwen_vl.files import replacing

from . import gptq

LINEARS = tuple(name for group in family.QUANTIZED_LINEARS for name in group)
IMAGES_AT_ONCE = 16
SETTINGS = "settings.json"

Tensors = dict[str, torch.Tensor]  # by name
Reader = Callable[[], torch.Tensor]


def check_shapes(disk: DiskModel, group_size: int) -> None:
    """Raise ValueError if a decoder linear cannot be packed to 4 bits."""
    for name in LINEARS:
        module, _ = disk.places[f"{family.block_name(0)}{name}.weight"]
        int4_layout.check_fits((module.out_features, module.in_features), group_size)


def open_work(folder: str | Path, settings: dict[str, Any]) -> Path:
    """Return the folder that keeps finished blocks until all are done. A run with the same settings resumes from them.

    Raise ValueError if an earlier run used other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = read_json(folder, SETTINGS)
    if found is not None and found != settings:
        different = ", ".join(
            sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key))
        )
        raise ValueError(f"{folder}: begun with another {different}; resume with the same, or delete this folder")
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder


def digest(samples: Iterable[Batch]) -> str:
    """Return the sha256 of the calibration samples, of their ids and pixels."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(sample["input_ids"].numpy().tobytes())
        if "pixel_values" in sample:
            found.update(sample["pixel_values"].numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def embed(disk: DiskModel, samples: Sequence[Batch], device: str | torch.device) -> list[torch.Tensor]:
    """Return the decoder's inputs of each sample, [1, length, hidden] in float32; images are features of the tower."""
    inner, tower = family.inner_model(disk.model), family.tower(disk.model)
    images = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
    features = []
    if images:
        for batch in torch.cat(images).split(IMAGES_AT_ONCE):
            features.extend(tower(batch.to(device)))
    hidden, used = [], 0
    for sample in samples:
        count = len(sample.get("pixel_values", ()))
        own = torch.stack(features[used : used + count]) if count else None
        used += count
        hidden.append(inner.embed(sample["input_ids"].to(device), image_features=own))
    return hidden


@torch.no_grad()
def quantize_blocks(
    disk: DiskModel,
    samples: Sequence[Batch],
    work: str | Path,
    *,
    group_size: int,
    desc_act: bool,
    damp: float,
    device: str | torch.device = "cpu",
    report: Callable[[str], None] = print,
) -> None:
    """Write layer-N.safetensors with the packed linears of each decoder block into the folder `work`.

    disk: a streaming DiskModel in float32. samples: model inputs of one row each. The inputs of a block are the outputs
    of the quantized blocks before it; within a block the same holds for linears. A file of an earlier run is reused.
    """
    hidden = embed(disk, samples, device)
    inputs = {length: family.block_inputs(disk.model.config, length, device) for length in {h.shape[1] for h in hidden}}
    blocks = family.decoder_blocks(disk.model)
    for index, block in enumerate(blocks):
        started, names = time.monotonic(), disk.blocks[family.block_name(index)]
        filled = disk.fill(names, dtype=torch.float32, device=device)
        file = Path(work, f"layer-{index:05d}.safetensors")

        def run(block: nn.Module = block, hidden: list[torch.Tensor] = hidden) -> list[torch.Tensor]:
            return [block(one, *inputs[one.shape[1]])[0] for one in hidden]

        if file.is_file():
            note = "done before"
            put_back(block, load_file(file), device)
        else:
            errors: dict[str, float] = {}
            parts = quantize_block(block, run, errors, group_size=group_size, desc_act=desc_act, damp=damp)
            keep(parts, file)
            note = "error " + ", ".join(f"{name} {error:.1%}" for name, error in errors.items())
        hidden = run()
        disk.empty(filled)
        report(f"block {index + 1}/{len(blocks)}: {note}; {time.monotonic() - started:.1f} s")


def keep(parts: Tensors, file: Path) -> None:
    """Write the packed linears of a block, so that `file` is always complete. Raise OSError if it cannot be written."""
    with replacing(file, cure="free some space and run the same command, which resumes") as unfinished:
        save_file(parts, unfinished)


def linear_of(block: nn.Module, name: str) -> nn.Linear:
    """Return a linear of a decoder block by its name in there."""
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear), f"{name}: a {type(linear).__name__}"
    return linear


def quantize_block(block: nn.Module, run: Callable[[], object], errors: dict[str, float], **options: Any) -> Tensors:
    """Return {"PATH.qweight": ..} of a block. Its linears get the weights that the packed parts stand for.

    run() is a forward pass over all calibration data. The output error of each linear is written into `errors`.
    options: those of `gptq.quantize`.
    """
    packed: Tensors = {}
    for group in family.QUANTIZED_LINEARS:
        linears = [linear_of(block, name) for name in group]
        hessian = gptq.Hessian(linears[0].in_features, linears[0].weight.device)
        handle = linears[0].register_forward_pre_hook(lambda _, inputs, seen=hessian: seen.add(inputs[0]))
        run()
        handle.remove()
        moments = hessian.mean()
        for name, linear in zip(group, linears, strict=True):
            parts = int4_layout.pack(*gptq.quantize(linear.weight.data, moments, **options))
            rounded = int4_layout.dequantize(parts)
            errors[name] = gptq.output_error(linear.weight.data, rounded, moments)
            linear.weight.data = rounded
            packed |= {f"{name}.{part}": tensor.cpu().contiguous() for part, tensor in parts.items()}
    return packed


def put_back(block: nn.Module, parts: Tensors, device: str | torch.device) -> None:
    """Give the linears of a block the weights that packed parts stand for."""
    for name in LINEARS:
        own = {part: parts[f"{name}.{part}"].to(device) for part in int4_layout.PARTS}
        linear_of(block, name).weight.data = int4_layout.dequantize(own)


def packed_readers(work: str | Path, num_blocks: int) -> dict[str, tuple[torch.Tensor, Reader]]:
    """Return {full name: (tensor of its shape and dtype on the meta device, reader)} of the files of all blocks."""
    readers: dict[str, tuple[torch.Tensor, Reader]] = {}
    for index in range(num_blocks):
        file = Path(work, f"layer-{index:05d}.safetensors")
        for name, tensor in load_file(file).items():
            readers[family.block_name(index) + name] = tensor.to("meta"), partial(read, file, name)
    return readers


def read(file: Path, name: str) -> torch.Tensor:
    """Return one tensor of a safetensors file."""
    with safe_open(file, framework="pt") as handle:
        return handle.get_tensor(name)
