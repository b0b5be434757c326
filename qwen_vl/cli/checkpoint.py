"""`qwen-vl checkpoint show|export`: what a checkpoint holds, and its model alone."""

from collections.abc import Sequence
from pathlib import Path

from qwen_vl.checkpoint.dtypes import DTYPES
from qwen_vl.checkpoint.files import is_adapter
from qwen_vl.export.checkpoint import export, show
from qwen_vl.training.resume import checkpoints

from .parsers import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """Show or export as the command line says. Exit with code 1 if a checkpoint that is shown is incomplete."""
    args = make_parser().parse_args(argv)
    if args.action == "export":
        export(args.folder, args.output, dtype=args.dtype)
        print(f"{'adapter' if is_adapter(args.output) else 'model'} in {args.output}")
        return
    is_one = Path(args.folder, checkpoints.TRAINER_STATE).exists() and Path(args.folder).name.startswith("checkpoint-")
    folders = [] if is_one else checkpoints.found(args.folder)
    shown = [show(folder) for folder in folders or [args.folder]]
    print("\n\n".join(text for text, _ in shown))
    if not all(is_complete for _, is_complete in shown):
        raise SystemExit(1)


def make_parser() -> Parser:
    """Build the parser of `qwen-vl checkpoint`."""
    parser = Parser(prog="qwen-vl checkpoint", description="Show or export a checkpoint of a run.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|export")
    show = actions.add_parser("show", help="show what it contains, and whether it is complete")
    show.add_argument("folder", help="a checkpoint-N folder, or the output folder of a run for all of them")
    take = actions.add_parser("export", help="write its model or adapter as a folder of its own")
    take.add_argument("folder", help="a checkpoint-N folder of one process, of DeepSpeed or of FSDP")
    take.add_argument("output", help="folder to write; must not exist or be empty")
    take.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of a model's weights (default: that of the run)",
    )
    return parser
