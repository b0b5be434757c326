"""`qwen-vl chat MODEL`: chat in the terminal."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from qwen_vl.checkpoint.dtypes import dtype_or_auto
from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.serving.engine import load
from qwen_vl.serving.terminal_chat import BOX_FILE, Session, converse, free_path, local_path

from .parsers import Parser, add_hub, add_loading, name_models


def make_parser() -> Parser:
    """Build the parser of `qwen-vl chat`."""
    parser = Parser(prog="qwen-vl chat", description="Chat with a Qwen-VL checkpoint about images.", allow_abbrev=False)
    parser.add_argument("model", help="folder of a checkpoint or of a LoRA adapter, or a hub name")
    parser.add_argument("--image", nargs="+", default=[], help="images that go with the first question")
    parser.add_argument("--query", help="ask this one question and end; without it, questions are read as you type")
    parser.add_argument(
        "--out",
        help=f"file for the image with an answer's boxes (default {BOX_FILE}); numbered _1, _2, .., "
        "but for one --query with --out",
    )
    parser.add_argument("--system", default=SYSTEM, help="the system message (default: %(default)s)")
    add_loading(parser)
    add_hub(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Chat as the command line says: one question with --query, else until the user ends it."""
    args = make_parser().parse_args(argv)
    name_models(args, "model", "base")
    if args.out and Path(args.out).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {args.out}: not an image format that can be written; end it in .png or .jpg")
    images = [local_path(reference) for reference in args.image]
    for reference in images:
        read_image(reference)  # before the weights, which take longer
    dtype = dtype_or_auto(args.dtype)
    model, tokenizer = load(args.model, device=args.device, dtype=dtype, base=args.base, trust_base=args.trust_base)
    session = Session(model, tokenizer, system=args.system)
    for reference in images:
        session.show(reference)
    if args.query is None:
        converse(session, args.out or BOX_FILE)
        return
    answer = session.ask(args.query)
    if args.out and "<box>" not in answer:
        session.note(f"this answer has no box, so {args.out} is not written")
    session.draw(answer, Path(args.out) if args.out else free_path(BOX_FILE))
