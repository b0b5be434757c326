"""`qwen-vl demo MODEL`: a web page to talk with a model about images."""

import os
from collections.abc import Sequence

from qwen_vl.checkpoint.dtypes import CHOICES, dtype_or_auto
from qwen_vl.serving.answerers import ModelAnswerer, ServerAnswerer
from qwen_vl.serving.engine import load
from qwen_vl.serving.session import Answerer

from .parsers import Parser, add_hub, name_models, positive

KEY = "OPENAI_API_KEY"


def make_parser() -> Parser:
    """Build the parser of `qwen-vl demo`."""
    parser = Parser(prog="qwen-vl demo", description="Serve a web page to try a Qwen-VL model.", allow_abbrev=False)
    parser.add_argument(
        "model", help=f"folder of a checkpoint or an adapter, hub name, or address of a server (its key in ${KEY})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=positive, default=8000, help="port (default: %(default)s)")
    parser.add_argument("--lang", default="en", choices=["en", "zh"], help="language at first (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="ask gradio for a public address: its servers relay all")
    parser.add_argument("--inbrowser", action="store_true", help="open the page in a browser")
    parser.add_argument("--device", help="cuda, cuda:1, cpu, .. (default: the GPU where there is one)")
    parser.add_argument("--dtype", default="auto", choices=CHOICES, help="dtype of the weights (default: the file's)")
    add_hub(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped. Raise ImportError, before the weights are read, if gradio is missing."""
    args = make_parser().parse_args(argv)
    name_models(args, "model")
    from qwen_vl.serving.demo.page import launch  # the extra "web"

    answerer: Answerer
    if args.model.startswith(("http://", "https://")):
        answerer = ServerAnswerer(args.model, os.environ.get(KEY))
    else:
        model, tokenizer = load(args.model, device=args.device, dtype=dtype_or_auto(args.dtype))
        answerer = ModelAnswerer(model, tokenizer, name=os.path.basename(os.path.normpath(args.model)))
    launch(answerer, language=args.lang, host=args.host, port=args.port, share=args.share, inbrowser=args.inbrowser)
