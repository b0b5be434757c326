"""`qwen-vl quantize MODEL OUT`: a checkpoint whose decoder is stored in 4 bits; tower and head stay as they are."""

import json
import os
import shutil
from pathlib import Path

import torch

from qwen_vl.checkpoint import int4_layout, loading, quantization, shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.dtypes import DTYPES
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.export import card
from qwen_vl.export.verify import verify
from qwen_vl.families import v1 as family

from . import gptq_decoder

METHODS = ("gptq", "nf4")


def quantize_gptq(
    path,
    output_dir,
    samples,
    *,
    group_size=128,
    desc_act=False,
    damp=0.01,
    dtype="float16",
    device="cpu",
    max_shard_size=shard_writer.SHARD_SIZE,
    report=print,
):
    """The folder `output_dir` with the Int4 checkpoint in the published layout; returns two Differences.

    samples: calibration, model inputs of one row each. The first Difference is between the written model as it is
    loaded and its weights as they are unpacked here, the second between it and the model before. Finished blocks are
    kept beside `output_dir`, so that a run that was interrupted goes on with them.
    Raises FileExistsError if `output_dir` holds anything, ValueError for what cannot be quantised, OSError.
    """
    output_dir = shard_writer.check_free(output_dir)
    quantization.check_packages("gptq")  # before hours of work that could not be checked
    folder = open_float(path)
    disk = DiskModel(folder)
    gptq_decoder.check_shapes(disk, group_size)
    options = {"group_size": group_size, "desc_act": desc_act, "damp": damp}
    settings = {"model": folder.fingerprint, "calibration data": gptq_decoder.digest(samples), **options}
    work = gptq_decoder.open_work(output_dir.with_name(f".{output_dir.name}.layers"), settings)
    tokenizer, stored = folder.tokenizer, disk.weights.dtype(family.HEAD_WEIGHT)
    disk.stream(dtype=torch.float32, device=device)
    gptq_decoder.quantize_blocks(disk, samples, work, device=device, report=report, **options)
    with shard_writer.complete(output_dir) as staging:
        model = DiskModel(folder).model
        model.config.quantization_config = quantization_config(**options)
        shard_writer.write_companions(staging, model, tokenizer, dtype=DTYPES[dtype])
        # Where readers of AutoGPTQ's time look for it.
        text = json.dumps(model.config.quantization_config, indent=2) + "\n"
        (staging / "quantize_config.json").write_text(text, encoding="utf-8")
        write_packed(disk, work, staging, DTYPES[dtype], max_shard_size=max_shard_size)
        computing = stored if stored == torch.float32 else DTYPES[dtype]  # exact where that costs no memory
        differences = check_written(folder, staging, stored, computing)
        verify.check(differences[0], computing, f"{output_dir}: what was written and what is loaded differ")
        said = f"Quantised to {int4_layout.BITS} bits by GPTQ on {len(samples)} conversations."
        write_card(staging, path, output_dir, differences, said, options)
    shutil.rmtree(work)
    return differences


def open_float(path: str | os.PathLike[str] | ModelFolder) -> ModelFolder:
    """Return the opened folder of a float model; raise ValueError for an adapter or a quantized model."""
    folder = ModelFolder.open(path)
    if folder.is_adapter:
        raise ValueError(f"{path}: an adapter; merge it first (qwen-vl merge {path} MERGED), then quantise the result")
    if folder.tensors.is_quantized:
        raise ValueError(f"{path}: is quantised already; give the float checkpoint")
    return folder


def quantization_config(*, group_size, desc_act, damp):
    """What config.json says about weights in the published layout, key by key."""
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


def write_packed(disk, work, folder, dtype, *, max_shard_size):
    """Write the weights of an Int4 checkpoint: packed linears from `work`, zero biases, the rest in `dtype`.

    Raises ValueError for a weight that `dtype` cannot hold.
    """
    packed = gptq_decoder.packed_readers(work, disk.model.config.num_hidden_layers)
    outlines, readers = {}, {}
    for name, (module, leaf) in disk.places.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" not in packed:
            outlines[name] = torch.empty(module._parameters[leaf].shape, dtype=dtype, device="meta")
            continue
        for part in int4_layout.PARTS:
            outlines[f"{stem}.{part}"], readers[f"{stem}.{part}"] = packed[f"{stem}.{part}"]
        if f"{stem}.bias" not in disk.places:
            outlines[f"{stem}.bias"] = torch.empty(module.out_features, dtype=dtype, device="meta")
            readers[f"{stem}.bias"] = lambda size=module.out_features: torch.zeros(size, dtype=dtype)

    def read(name):
        if name in readers:
            return readers[name]()
        value = disk.weights.read(name).to(dtype)
        if not torch.isfinite(value).all():
            raise ValueError(f"{name}: too large for {dtype}; give --dtype bfloat16")
        return value

    shard_writer.write_weights(folder, outlines, read, max_shard_size=max_shard_size)


def check_written(
    source: ModelFolder, written: Path, stored: torch.dtype, computing: torch.dtype
) -> tuple[verify.Difference, verify.Difference]:
    """Return two Differences on built-in prompts: loaded against unpacked weights, and before against after."""
    prompt = [verify.picture_prompt(source.tokenizer, source.config)]
    unpacked = verify.logits_from_disk(written, prompt, dtype=computing)
    model = loading.load_model(written, dtype=computing)
    loaded = [verify.logits(model, inputs, verify.LAST_POSITIONS) for inputs in prompt]
    before = verify.logits_from_disk(source, prompt, dtype=stored)
    return verify.compare(unpacked, loaded), verify.compare(before, unpacked)


def quantize_nf4(path, output_dir, *, max_shard_size=shard_writer.SHARD_SIZE):
    """The folder `output_dir` with the checkpoint in bitsandbytes' nf4, without calibration; returns two Differences.

    As `quantize_gptq` has them. The model is quantised while it is loaded, so memory is that of the result.
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
        verify.check(differences[0], torch.bfloat16, f"{output_dir}: what was written and what is loaded differ")
        write_card(staging, path, output_dir, differences, "Quantised to bitsandbytes nf4 without calibration.")
    return differences


def write_card(folder, path, output_dir, differences, said, options=()):
    """Write the model card of a quantised model."""
    facts = {f"quantisation, {name}": value for name, value in dict(options).items()}
    facts |= {"float against quantised": str(differences[1])}
    found = card.extended(card.read(path), said, **facts)
    card.write(folder, found, title=output_dir.name, base={"name": str(path)})
