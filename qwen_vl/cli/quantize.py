"""`qwen-vl quantize MODEL OUT`: the decoder of a checkpoint in 4 bits."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from qwen_vl.checkpoint import int4_layout, loading, shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.dtypes import DTYPES
from qwen_vl.evaluation import quality
from qwen_vl.export import card
from qwen_vl.export.quantize.quantize import METHODS, quantize_gptq, quantize_nf4
from qwen_vl.families import v1 as family

from .parsers import Parser, add_hub, file_size, name_models


def main(argv: Sequence[str] | None = None) -> None:
    """Quantize as the command line says, and print how the result differs."""
    args = make_parser().parse_args(argv)
    name_models(args, "model")
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
    print(f"quantized model in {args.output}")
    if args.evaluate:
        report = evaluation(args)
        print(report)
        card.add(args.output, "Quality before and after", report)


def check(args: argparse.Namespace) -> None:
    """Raise ValueError with everything that is wrong with the command line."""
    wrong = []
    if args.bits != int4_layout.BITS:
        wrong.append(f"--bits {args.bits}: only {int4_layout.BITS} bits are written")
    if args.method == "gptq" and not args.calibration:
        wrong.append("--calibration: GPTQ needs conversations, some with images; nf4 (--method nf4) needs none")
    if args.group_size < 1 or not 0 < args.damp < 1 or args.max_samples < 1:
        wrong.append("--group_size and --max_samples must be at least 1, --damp between 0 and 1")
    if wrong:
        raise ValueError("; ".join(wrong))


def calibration(args: argparse.Namespace) -> list[Any]:
    """Return the encoded calibration samples. Raise ValueError for data without a single image."""
    shard_writer.check_free(args.output)
    config = loading.load_config(args.model)
    samples = quality.samples_of(
        args.calibration,
        loading.load_tokenizer(args.model, config),
        family.image_size(config),
        image_folder=args.image_folder,
        limit=args.max_samples,
        max_length=args.model_max_length,
    )
    num_images = sum(len(sample.get("pixel_values", ())) for sample in samples)
    if not num_images:
        raise ValueError(f"{args.calibration}: no images in it; calibrate with data like that of later use")
    tokens = sum(sample["input_ids"].shape[1] for sample in samples)
    print(f"calibration: {len(samples)} conversations, {num_images} images, {tokens:,} tokens", file=sys.stderr)
    return samples


def evaluation(args: argparse.Namespace) -> str:
    """Return the table of quality before and after."""
    options = {"image_folder": args.image_folder, "limit": args.max_evaluated, "device": args.device}
    options["dtype"] = DiskModel(args.model).weights.dtype(family.HEAD_WEIGHT)
    before, after = (quality.measure(folder, args.evaluate, **options) for folder in (args.model, args.output))
    return quality.table(before, after)


def make_parser() -> Parser:
    """Build the parser of `qwen-vl quantize`."""
    parser = Parser(
        prog="qwen-vl quantize", description="Store the decoder of a checkpoint in 4 bits.", allow_abbrev=False
    )
    parser.add_argument("model", help="folder or hub name of a float checkpoint")
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    parser.add_argument("--bits", type=int, default=int4_layout.BITS, help="bits of a weight (only %(default)s)")
    parser.add_argument("--method", default="gptq", choices=METHODS, help="gptq (calibrated) or nf4 (not)")
    parser.add_argument("--calibration", help="conversation file with images, on which GPTQ preserves the outputs")
    parser.add_argument("--image_folder", help="where relative image paths are looked up as well")
    parser.add_argument("--max_samples", type=int, default=128, help="conversations for calibration (%(default)s)")
    parser.add_argument(
        "--model_max_length", type=int, default=2048, help="the most tokens of one (default %(default)s)"
    )
    parser.add_argument("--group_size", type=int, default=128, help="inputs that share a scale (default %(default)s)")
    parser.add_argument("--desc_act", action="store_true", help="columns with the largest inputs first: better, slower")
    parser.add_argument(
        "--damp", type=float, default=0.01, help="share of the mean added to the diagonal (%(default)s)"
    )
    parser.add_argument(
        "--dtype", default="float16", choices=DTYPES, help="dtype of all weights that stay float (%(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="where blocks are computed: cpu, cuda, .. (%(default)s)")
    parser.add_argument(
        "--max_shard_size", type=file_size, default=shard_writer.SHARD_SIZE, help="largest weight file (%(default)s)"
    )
    parser.add_argument("--evaluate", help="conversation file: print perplexity and answers on it, before and after")
    parser.add_argument(
        "--max_evaluated", type=int, default=200, help="the most conversations to take from it (%(default)s)"
    )
    add_hub(parser)
    return parser
