"""`qwen-vl verify FIRST SECOND`: whether two models are the same."""

from collections.abc import Sequence

from qwen_vl.checkpoint.dtypes import CHOICES, dtype_or_auto
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.evaluation import probe_prompts
from qwen_vl.export.verify.comparison import compare
from qwen_vl.export.verify.verify import QUANTIZED, different_files, outcome, tolerance_for

from .parsers import Parser, add_hub, name_models, not_negative, positive


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the two models of the command line. Raise ValueError (exit code 1) if they differ."""
    args = make_parser().parse_args(argv)
    name_models(args, "first", "second")
    records, search_dirs = probe_prompts.load(args.prompts, image_folder=args.image_folder, limit=args.max_prompts)
    folders = [ModelFolder.open(name) for name in (args.first, args.second)]
    files = different_files(*folders)
    first, second = (
        outcome(
            folder,
            records,
            search_dirs=search_dirs,
            dtype=dtype_or_auto(args.dtype),
            device=args.device,
            from_disk=args.from_disk,
            max_new_tokens=args.max_new_tokens,
        )
        for folder in folders
    )
    if first.ids != second.ids:
        raise ValueError(f"{args.first} and {args.second}: their tokenizers make different ids of the same prompts")
    difference = compare(first.logits, second.logits)
    equal = sum(one == other for one, other in zip(first.answers, second.answers, strict=True))
    tolerance = tolerance_for(first, second) if args.tolerance is None else args.tolerance
    print(f"prompts         {len(records)} from {args.prompts or 'this tool'}")
    print(f"logits          {difference}")
    print(f"greedy answers  {equal} of {len(records)} the same")
    print("files           " + ("\n                ".join(files) if files else "the same"))
    if not difference.largest <= tolerance:
        raise ValueError(f"{args.first} and {args.second} differ by {difference.largest:.2e}, more than {tolerance:g}")
    print(f"the same within {tolerance:g}")


def make_parser() -> Parser:
    """Build the parser of `qwen-vl verify`."""
    parser = Parser(
        prog="qwen-vl verify", description="Compare two models: logits, greedy answers, files.", allow_abbrev=False
    )
    parser.add_argument("first", help="folder of a checkpoint or an adapter, or a hub name")
    parser.add_argument("second", help="the other model")
    parser.add_argument("--prompts", help="conversation file whose last questions are asked (default: three built in)")
    parser.add_argument("--image_folder", help="where its relative image paths are looked up as well")
    parser.add_argument(
        "--max_prompts", type=positive, default=16, help="the most conversations to take (default %(default)s)"
    )
    parser.add_argument(
        "--max_new_tokens", type=positive, default=32, help="length of the answers (default %(default)s)"
    )
    parser.add_argument(
        "--tolerance",
        type=not_negative,
        help="largest difference of logits, as a share of the largest (default: that of rounding in their dtype; "
        f"{QUANTIZED} if one is quantized)",
    )
    parser.add_argument("--dtype", default="auto", choices=CHOICES, help="dtype to compute in (default: the files')")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, .. (default %(default)s)")
    parser.add_argument("--from_disk", action="store_true", help="read weights block by block: memory of one block")
    add_hub(parser)
    return parser
