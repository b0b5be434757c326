"""`qwen-vl export SOURCE OUT`: a standalone folder with a card, of a model, a checkpoint of a run or an adapter."""

from collections.abc import Sequence

from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.export.export import export

from . import merge
from .parsers import Parser, add_hub, name_models


def main(argv: Sequence[str] | None = None) -> None:
    """Export as the command line says. An adapter is merged as `qwen-vl merge` does it."""
    args = make_parser().parse_args(argv)
    name_models(args, "adapter", "base", "onto")
    if ModelFolder.open(args.adapter).is_adapter:
        merge.run(args)
        return
    wrong = [f"--{name}" for name in ("base", "onto", "dequantize", "prompts", "trust_base") if vars(args)[name]]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: for an adapter, which {args.adapter} is not")
    export(args.adapter, output_dir=args.output, dtype=args.dtype, max_shard_size=args.max_shard_size)
    print(f"model and card in {args.output}")


def make_parser() -> Parser:
    """Build the parser of `qwen-vl export`."""
    parser = Parser(
        prog="qwen-vl export", description="Write a standalone model with a model card.", allow_abbrev=False
    )
    parser.add_argument(
        "adapter", metavar="source", help="folder of a model, of a checkpoint-N, or of an adapter, or a hub name"
    )
    parser.add_argument("output", help="folder to write; must not exist or be empty")
    merge.add_options(parser)
    add_hub(parser)
    return parser
