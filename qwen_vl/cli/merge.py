"""`qwen-vl merge ADAPTER OUT`: an adapter and its base become one standalone checkpoint."""

import argparse
import sys
from collections.abc import Sequence

from qwen_vl.checkpoint import shard_writer
from qwen_vl.checkpoint.dtypes import CHOICES
from qwen_vl.export.merge import merge

from .parsers import Parser, add_hub, file_size, name_models


def main(argv: Sequence[str] | None = None) -> None:
    """Merge as the command line says and print where the result is."""
    args = make_parser().parse_args(argv)
    name_models(args, "adapter", "base", "onto")
    run(args)


def run(args: argparse.Namespace) -> None:
    """Merge as parsed arguments say."""
    done = merge(
        args.adapter,
        output_dir=args.output,
        base=args.base,
        onto=args.onto,
        dequantize=args.dequantize,
        prompts_path=args.prompts,
        image_folder=args.image_folder,
        max_shard_size=args.max_shard_size,
        dtype=args.dtype,
        trust_base=args.trust_base,
    )
    print(f"base + adapter and merged model agree: {done.difference}", file=sys.stderr)
    if done.change_of_base:
        print(f"what the change of base does: {done.change_of_base}")
    print(f"merged model in {args.output}")


def make_parser() -> Parser:
    """Build the parser of `qwen-vl merge`."""
    parser = Parser(prog="qwen-vl merge", description="Merge a LoRA adapter into its base: one standalone checkpoint.")
    parser.add_argument("adapter", help="folder of the trained adapter, or a hub name")
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    add_options(parser)
    add_hub(parser)
    return parser


def add_options(parser: Parser) -> None:
    """Add the options that `qwen-vl merge` and `qwen-vl export` share."""
    parser.add_argument("--base", help="folder or hub name of the base, if it has moved since training")
    parser.add_argument("--onto", help="for an adapter on a quantized base: the float model to merge into instead")
    parser.add_argument("--dequantize", action="store_true", help="the same: merge into the base's dequantized weights")
    parser.add_argument("--prompts", help="conversations on which a change of base is measured (default: built in)")
    parser.add_argument("--image_folder", help="where its relative image paths are looked up as well")
    parser.add_argument(
        "--max_shard_size", type=file_size, default=shard_writer.SHARD_SIZE, help="largest weight file (%(default)s)"
    )
    parser.add_argument("--dtype", default="auto", choices=CHOICES, help="dtype of the result (default: the base's)")
    parser.add_argument("--trust_base", action="store_true", help="merge even if the base cannot be identified")
