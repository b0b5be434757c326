"""`qwen-vl quantize MODEL OUT`: a checkpoint whose decoder is stored in 4 bits; tower and head stay as they are."""

import argparse
import json
import shutil
import sys

import torch

from qwen_vl.families import v1 as family
from qwen_vl.training import loading, quantization

from . import bases, card, layers, packing, quality, verify, writing
from .ondisk import DiskModel

METHODS = ("gptq", "nf4")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
    max_shard_size=writing.SHARD_SIZE,
    report=print,
):
    """The folder `output_dir` with the Int4 checkpoint in the published layout; returns two Differences.

    samples: calibration, model inputs of one row each. The first Difference is between the written model as it is
    loaded and its weights as they are unpacked here, the second between it and the model before. Finished blocks are
    kept beside `output_dir`, so that a run that was interrupted goes on with them.
    Raises FileExistsError if `output_dir` holds anything, ValueError for what cannot be quantised, OSError.
    """
    output_dir = writing.check_free(output_dir)
    quantization.check_packages("gptq")  # before hours of work that could not be checked
    disk = open_float(path)
    layers.check_shapes(disk, group_size)
    options = {"group_size": group_size, "desc_act": desc_act, "damp": damp}
    settings = {"model": loading.fingerprint(path), "calibration data": layers.digest(samples), **options}
    work = layers.open_work(output_dir.with_name(f".{output_dir.name}.layers"), settings)
    tokenizer, stored = loading.load_tokenizer(path), disk.weights.dtype(family.HEAD_WEIGHT)
    disk.stream(dtype=torch.float32, device=device)
    layers.quantize_blocks(disk, samples, work, device=device, report=report, **options)
    with writing.complete(output_dir) as staging:
        model = DiskModel(path).model
        model.generation_config = bases.generation_of(path, model)
        model.config.quantization_config = quantization_config(**options)
        writing.write_companions(staging, model, tokenizer, dtype=DTYPES[dtype])
        # Where readers of AutoGPTQ's time look for it.
        text = json.dumps(model.config.quantization_config, indent=2) + "\n"
        (staging / "quantize_config.json").write_text(text, encoding="utf-8")
        write_packed(disk, work, staging, DTYPES[dtype], max_shard_size=max_shard_size)
        computing = stored if stored == torch.float32 else DTYPES[dtype]  # exact where that costs no memory
        differences = check_written(path, staging, tokenizer, stored, computing)
        verify.check(differences[0], computing, f"{output_dir}: what was written and what is loaded differ")
        said = f"Quantised to {packing.BITS} bits by GPTQ on {len(samples)} conversations."
        write_card(staging, path, output_dir, differences, said, options)
    shutil.rmtree(work)
    return differences


def open_float(path):
    """The DiskModel of a checkpoint; ValueError for an adapter and for what is quantised already."""
    if bases.is_adapter(path):
        raise ValueError(f"{path}: an adapter; merge it first (qwen-vl merge {path} MERGED), then quantise the result")
    disk = DiskModel(path)
    if disk.weights.is_quantized:
        raise ValueError(f"{path}: is quantised already; give the float checkpoint")
    return disk


def quantization_config(*, group_size, desc_act, damp):
    """What config.json says about weights in the published layout, key by key."""
    return {
        "bits": packing.BITS,
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
    packed = layers.packed_readers(work, disk.model.config.num_hidden_layers)
    outlines, readers = {}, {}
    for name, (module, leaf) in disk.places.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" not in packed:
            outlines[name] = torch.empty(module._parameters[leaf].shape, dtype=dtype, device="meta")
            continue
        for part in packing.PARTS:
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

    writing.write_weights(folder, outlines, read, max_shard_size=max_shard_size)


def check_written(path, folder, tokenizer, stored, computing):
    """(written as loaded against as unpacked, written against the model before): Differences on built-in prompts."""
    prompt = [verify.picture_prompt(tokenizer, loading.load_config(path))]
    unpacked = verify.logits_from_disk(folder, prompt, dtype=computing)
    model = loading.load_model(folder, dtype=computing)
    loaded = [verify.logits(model, inputs, verify.LAST_POSITIONS) for inputs in prompt]
    before = verify.logits_from_disk(path, prompt, dtype=stored)
    return verify.compare(unpacked, loaded), verify.compare(before, unpacked)


def quantize_nf4(path, output_dir, *, max_shard_size=writing.SHARD_SIZE):
    """The folder `output_dir` with the checkpoint in bitsandbytes' nf4, without calibration; returns two Differences.

    As `quantize_gptq` has them. The model is quantised while it is loaded, so memory is that of the result.
    """
    output_dir = writing.check_free(output_dir)
    stored = open_float(path).weights.dtype(family.HEAD_WEIGHT)
    tokenizer = loading.load_tokenizer(path)
    model = loading.load_model(path, dtype=stored, quantization="nf4")
    with writing.complete(output_dir) as staging:
        model.save_pretrained(staging, max_shard_size=max_shard_size)
        writing.write_processor(staging, model, tokenizer)
        differences = check_written(path, staging, tokenizer, stored, stored)
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


def main(argv=None):
    """Quantise as the command line says and print what it cost."""
    args = make_parser().parse_args(argv)
    check(args)
    if args.method == "nf4":
        differences = quantize_nf4(args.model, args.output, max_shard_size=args.max_shard_size)
    else:
        differences = quantize_gptq(
            args.model,
            args.output,
            calibration(args),
            group_size=args.group_size,
            desc_act=args.desc_act,
            damp=args.damp,
            dtype=args.dtype,
            device=args.device,
            max_shard_size=args.max_shard_size,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print(f"written and loaded model agree: {differences[0]}", file=sys.stderr)
    print(f"against the model before: {differences[1]}", file=sys.stderr)
    print(f"quantised model in {args.output}")
    if args.evaluate:
        report = evaluation(args)
        print(report)
        card.add(args.output, "Quality before and after", report)


def check(args):
    """None, or a ValueError with everything that is wrong with the command line."""
    wrong = []
    if args.bits != packing.BITS:
        wrong.append(f"--bits {args.bits}: only {packing.BITS} bits are written")
    if args.method == "gptq" and not args.calibration:
        wrong.append("--calibration: GPTQ needs conversations, some with pictures; nf4 (--method nf4) needs none")
    if args.group_size < 1 or not 0 < args.damp < 1 or args.max_samples < 1:
        wrong.append("--group_size and --max_samples must be at least 1, --damp between 0 and 1")
    if wrong:
        raise ValueError("; ".join(wrong))


def calibration(args):
    """The calibration samples of the command line; ValueError for data without a single picture."""
    writing.check_free(args.output)
    config = loading.load_config(args.model)
    samples = quality.samples_of(
        args.calibration,
        loading.load_tokenizer(args.model, config),
        family.image_size(config),
        image_folder=args.image_folder,
        limit=args.max_samples,
        max_length=args.model_max_length,
    )
    pictures = sum(len(sample.get("pixel_values", ())) for sample in samples)
    if not pictures:
        raise ValueError(f"{args.calibration}: no pictures in it; calibrate with data like that of later use")
    tokens = sum(sample["input_ids"].shape[1] for sample in samples)
    print(f"calibration: {len(samples)} conversations, {pictures} pictures, {tokens:,} tokens", file=sys.stderr)
    return samples


def evaluation(args):
    """The table of quality before and after."""
    options = {"image_folder": args.image_folder, "limit": args.max_evaluated, "device": args.device}
    options["dtype"] = DiskModel(args.model).weights.dtype(family.HEAD_WEIGHT)
    before, after = (quality.measure(folder, args.evaluate, **options) for folder in (args.model, args.output))
    return quality.table(before, after)


def make_parser():
    """The parser of `qwen-vl quantize`."""
    parser = argparse.ArgumentParser(
        prog="qwen-vl quantize", description="Store the decoder of a checkpoint in 4 bits.", allow_abbrev=False
    )
    parser.add_argument("model", help="folder or hub name of a float checkpoint")
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    parser.add_argument("--bits", type=int, default=packing.BITS, help="bits of a weight (only %(default)s)")
    parser.add_argument("--method", default="gptq", choices=METHODS, help="gptq (calibrated) or nf4 (not)")
    parser.add_argument("--calibration", help="conversation file, with pictures: what GPTQ keeps the outputs of")
    parser.add_argument("--image_folder", help="where relative picture paths are looked up as well")
    parser.add_argument("--max_samples", type=int, default=128, help="conversations for calibration (%(default)s)")
    parser.add_argument("--model_max_length", type=int, default=2048, help="most tokens of one (default %(default)s)")
    parser.add_argument("--group_size", type=int, default=128, help="inputs that share a scale (default %(default)s)")
    parser.add_argument("--desc_act", action="store_true", help="columns with the largest inputs first: better, slower")
    parser.add_argument(
        "--damp", type=float, default=0.01, help="share of the mean added to the diagonal (%(default)s)"
    )
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of all that stays float (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where blocks are computed: cpu, cuda, .. (%(default)s)")
    parser.add_argument("--max_shard_size", default=writing.SHARD_SIZE, help="largest weight file (%(default)s)")
    parser.add_argument("--evaluate", help="conversation file: print perplexity and answers on it, before and after")
    parser.add_argument("--max_evaluated", type=int, default=200, help="at most so many of its records (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
