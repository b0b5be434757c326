"""`qwen-vl chat MODEL`: chat in the terminal."""

import argparse
from pathlib import Path

from PIL import Image

from qwen_vl.checkpoint.dtypes import CHOICES
from qwen_vl.model.chat_qwen import SYSTEM
from qwen_vl.model.image_loading_qwen import open_picture
from qwen_vl.serving.engine import load
from qwen_vl.serving.terminal_chat import BOX_FILE, Session, converse, free_path, local_path


def make_parser():
    """The parser of `qwen-vl chat`."""
    parser = argparse.ArgumentParser(
        prog="qwen-vl chat", description="Chat with a Qwen-VL checkpoint about pictures.", allow_abbrev=False
    )
    parser.add_argument("model", help="folder of a checkpoint or of a LoRA adapter, or a hub name")
    parser.add_argument("--image", nargs="+", default=[], help="pictures that go with the first question")
    parser.add_argument("--query", help="ask this one question and end; without it, questions are read as you type")
    parser.add_argument(
        "--out",
        help=f"file for the picture with an answer's boxes (default {BOX_FILE}); numbered _1, _2, .., "
        "but for one --query with --out",
    )
    parser.add_argument("--system", default=SYSTEM, help="the system message (default: %(default)s)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu, .. (default: the GPU where there is one)")
    parser.add_argument("--dtype", default="auto", choices=CHOICES, help="dtype of the weights (default: the file's)")
    parser.add_argument("--base", help="folder or hub name of an adapter's base, if it has moved since training")
    parser.add_argument("--trust_base", action="store_true", help="use an adapter whose base cannot be identified")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv=None):
    """Chat as the command line says: one question with --query, else until the user ends it."""
    args = make_parser().parse_args(argv)
    if args.out and Path(args.out).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {args.out}: not a picture format that can be written; end it in .png or .jpg")
    pictures = [local_path(reference) for reference in args.image]
    for reference in pictures:
        open_picture(reference)  # before the weights, which take longer
    model, tokenizer = load(
        args.model, device=args.device, dtype=args.dtype, base=args.base, trust_base=args.trust_base
    )
    session = Session(model, tokenizer, system=args.system)
    session.waiting = pictures
    if args.query is None:
        return converse(session, args.out or BOX_FILE)
    session.draw(session.ask(args.query), Path(args.out) if args.out else free_path(BOX_FILE))
