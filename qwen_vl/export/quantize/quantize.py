"""`qwen-vl quantize MODEL OUT`: a checkpoint whose decoder is stored in 4 bits; tower and head stay as they are."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch

from qwen_vl.checkpoint import int4_layout, loading, quantization, shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.dtypes import DTYPES
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.data.collator import Batch
from qwen_vl.export import card
from qwen_vl.export.verify import comparison
from qwen_vl.families import v1 as family

from . import gptq_decoder

METHODS = ("gptq", "nf4")

# Loaded against unpacked weights, and float against quantized ones.
Differences = tuple[comparison.Difference, comparison.Difference]


class Options(TypedDict):
    """The options of GPTQ, as `gptq.quantize` has them."""

    group_size: int
    desc_act: bool
    damp: float


def quantize_gptq(
    path: str | Path,
    output_dir: str | Path,
    samples: Sequence[Batch],
    *,
    group_size: int = 128,
    desc_act: bool = False,
    damp: float = 0.01,
    dtype: str = "float16",
    device: str | torch.device = "cpu",
    max_shard_size: str = shard_writer.SHARD_SIZE,
    report: Callable[[str], None] = print,
) -> Differences:
    """Write the folder `output_dir` with the Int4 checkpoint in the published layout; return two Differences.

    samples: for calibration, model inputs of one row each. The first Difference compares the loaded model with the
    weights unpacked here, the second compares those with the model before. An interrupted run resumes from its finished
    blocks, which are kept next to `output_dir`.
    Raise FileExistsError if `output_dir` holds anything, ValueError if the model cannot be quantized, OSError.
    """
    output_dir = shard_writer.check_free(output_dir)
    quantization.check_packages("gptq")  # before hours of work that cannot be checked without them
    folder = open_float(path)
    disk = DiskModel(folder)
    gptq_decoder.check_shapes(disk, group_size)
    options: Options = {"group_size": group_size, "desc_act": desc_act, "damp": damp}
    settings = {"model": folder.fingerprint, "calibration data": gptq_decoder.digest(samples), **options}
    work = gptq_decoder.open_work(output_dir.with_name(f".{output_dir.name}.layers"), settings)
    tokenizer, stored = folder.tokenizer, disk.weights.dtype(family.HEAD_WEIGHT)
    disk.stream(dtype=torch.float32, device=device)
    gptq_decoder.quantize_blocks(disk, samples, work, device=device, report=report, **options)
    with shard_writer.complete(output_dir) as staging:
        model = DiskModel(folder).model
        model.config.quantization_config = quantization_config(**options)
        shard_writer.write_companions(staging, model, tokenizer, dtype=DTYPES[dtype])
        # Readers from AutoGPTQ's time look for it there.
        text = json.dumps(model.config.quantization_config, indent=2) + "\n"
        (staging / "quantize_config.json").write_text(text, encoding="utf-8")
        write_packed(disk, work, staging, DTYPES[dtype], max_shard_size=max_shard_size)
        computing = stored if stored == torch.float32 else DTYPES[dtype]  # exact if that costs no memory
        differences = check_written(folder, staging, stored, computing)
        comparison.check(differences[0], computing, f"{output_dir}: what was written and what is loaded differ")
        said = f"Quantized to {int4_layout.BITS} bits by GPTQ on {len(samples)} conversations."
        write_card(staging, path, output_dir, differences, said, options)
    shutil.rmtree(work)
    return differences


def open_float(path: str | Path | ModelFolder) -> ModelFolder:
    """Return the opened folder of a float model; raise ValueError for an adapter or a quantized model."""
    folder = ModelFolder.open(path)
    if folder.is_adapter:
        raise ValueError(f"{path}: an adapter; merge it first (qwen-vl merge {path} MERGED), then quantize the result")
    if folder.tensors.is_quantized:
        raise ValueError(f"{path}: is quantized already; give the float checkpoint")
    return folder


def quantization_config(*, group_size: int, desc_act: bool, damp: float) -> dict[str, Any]:
    """Return the quantization_config that config.json holds for weights in the published layout."""
    return {
        "bits": int4_layout.BITS,
        "group_size": group_size,
        "damp_percent": damp,
        "desc_act": desc_act,
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "quant_method": "gptq",
    }


def write_packed(disk: DiskModel, work: Path, folder: Path, dtype: torch.dtype, *, max_shard_size: str) -> None:
    """Write the weights of an Int4 checkpoint: packed linears from `work`, zero biases, the rest in `dtype`.

    Raise ValueError if `dtype` cannot hold a weight.
    """
    packed = gptq_decoder.packed_readers(work, disk.model.config.num_hidden_layers)
    outlines: dict[str, torch.Tensor] = {}
    readers: dict[str, gptq_decoder.Reader] = {}
    for name, (module, leaf) in disk.places.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" not in packed:
            outlines[name] = torch.empty(module._parameters[leaf].shape, dtype=dtype, device="meta")
            continue
        for part in int4_layout.PARTS:
            outlines[f"{stem}.{part}"], readers[f"{stem}.{part}"] = packed[f"{stem}.{part}"]
        if f"{stem}.bias" not in disk.places:
            outlines[f"{stem}.bias"] = torch.empty(module.out_features, dtype=dtype, device="meta")
            readers[f"{stem}.bias"] = partial(torch.zeros, module.out_features, dtype=dtype)

    def read(name: str) -> torch.Tensor:
        if name in readers:
            return readers[name]()
        value = disk.weights.read(name).to(dtype)
        if not torch.isfinite(value).all():
            raise ValueError(f"{name}: too large for {dtype}; give --dtype bfloat16")
        return value

    shard_writer.write_weights(folder, outlines, read, max_shard_size=max_shard_size)


def check_written(source: ModelFolder, written: Path, stored: torch.dtype, computing: torch.dtype) -> Differences:
    """Return two Differences on built-in prompts: loaded against unpacked weights, and before against after."""
    prompt = [comparison.image_prompt(source.tokenizer, source.config)]
    unpacked = comparison.logits_from_disk(written, prompt, dtype=computing)
    model = loading.load_model(written, dtype=computing)
    loaded = [comparison.logits(model, inputs, comparison.LAST_POSITIONS) for inputs in prompt]
    before = comparison.logits_from_disk(source, prompt, dtype=stored)
    return comparison.compare(unpacked, loaded), comparison.compare(before, unpacked)


def quantize_nf4(
    path: str | Path,
    output_dir: str | Path,
    *,
    max_shard_size: str = shard_writer.SHARD_SIZE,
) -> Differences:
    """Write the folder `output_dir` with the checkpoint in bitsandbytes' nf4; return two Differences.

    The Differences are those of `quantize_gptq`; no calibration is needed. The model is quantized while it is loaded,
    so memory is that of the result.
    """
    output_dir = shard_writer.check_free(output_dir)
    folder = open_float(path)
    stored, tokenizer = folder.tensors.dtype(family.HEAD_WEIGHT), folder.tokenizer
    model = loading.load_model(path, dtype=stored, quantization="nf4")
    with shard_writer.complete(output_dir) as staging:
        model.save_pretrained(staging, max_shard_size=max_shard_size)
        shard_writer.write_processor(staging, model, tokenizer)
        differences = check_written(folder, staging, stored, stored)
        # bitsandbytes computes in bfloat16 on a CPU that can.
        comparison.check(differences[0], torch.bfloat16, f"{output_dir}: what was written and what is loaded differ")
        write_card(staging, path, output_dir, differences, "Quantized to bitsandbytes nf4 without calibration.")
    return differences


def write_card(
    folder: Path,
    path: str | Path,
    output_dir: Path,
    differences: Differences,
    said: str,
    options: Mapping[str, object] | tuple[()] = (),
) -> None:
    """Write the model card of a quantized model. options: those of the quantization."""
    facts = {f"quantization, {name}": value for name, value in dict(options).items()}
    facts |= {"float against quantized": str(differences[1])}
    found = card.extended(card.read(path), said, **facts)
    card.write(folder, found, title=output_dir.name, base={"name": str(path)})
