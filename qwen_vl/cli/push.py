"""`qwen-vl push FOLDER NAME`: upload a model or an adapter to a hub, with its card."""

from collections.abc import Sequence

from qwen_vl.export.push import push
from qwen_vl.hubs import names

from .parsers import Parser


def main(argv: Sequence[str] | None = None) -> None:
    """Upload as the command line says, and print the address."""
    args = make_parser().parse_args(argv)
    name = names.full(args.name, hub=args.hub, revision=args.revision)
    print(f"uploaded to {push(args.folder, name, private=args.private)}")


def make_parser() -> Parser:
    """Build the parser of `qwen-vl push`."""
    parser = Parser(
        prog="qwen-vl push",
        description="Upload a model or an adapter to a hub, with its card. The token is that of `hf auth login` or "
        "HF_TOKEN, of `modelscope login` or MODELSCOPE_API_TOKEN.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="folder of a model or an adapter, such as qwen-vl export and training write")
    parser.add_argument("name", help="OWNER/NAME on the hub; made if it does not exist")
    parser.add_argument("--hub", choices=names.HUBS, help=f"hub (default: ${names.VARIABLE}, else huggingface)")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to write to (default: the hub's main one)")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    return parser
