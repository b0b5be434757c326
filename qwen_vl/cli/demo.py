"""`qwen-vl demo MODEL`: a web page to talk with a model about images."""

import logging
import os
import socket
from collections.abc import Sequence

from qwen_vl.checkpoint.dtypes import dtype_or_auto
from qwen_vl.serving.answerers import EngineAnswerer, ServerAnswerer
from qwen_vl.serving.engine import Engine

from .parsers import Parser, add_hub, add_loading, by_name, name_models, positive

KEY = "OPENAI_API_KEY"
CHATTY = ("ContinuousBatchingLogger", "httpx")  # loggers that say much at the level INFO


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
    parser.add_argument(
        "--adapters", nargs="+", default=[], metavar="NAME=FOLDER", help="adapters on the page (default: none)"
    )
    add_loading(parser)
    add_hub(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped. Raise ImportError, before the weights are read, if gradio is missing."""
    args = make_parser().parse_args(argv)
    name_models(args, "model", "base")
    from qwen_vl.serving.demo.page import launch  # the extra "web"

    place = {"host": args.host, "port": args.port, "share": args.share, "inbrowser": args.inbrowser}
    adapters = by_name("--adapters", args.adapters)
    if args.model.startswith(("http://", "https://")):
        if adapters:
            raise ValueError(f"--adapters: {args.model} is a server; start it with its adapters")
        launch(ServerAnswerer(args.model, os.environ.get(KEY)), language=args.lang, **place)
        return
    check_free(args.host, args.port)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    engine = Engine.load(
        args.model,
        adapters=adapters,
        device=args.device,
        dtype=dtype_or_auto(args.dtype),
        base=args.base,
        trust_base=args.trust_base,
    )
    with engine:  # its threads end with the page
        launch(EngineAnswerer(engine), language=args.lang, **place)


def check_free(host: str, port: int) -> None:
    """Raise OSError, before the weights are read, if the page cannot be served at an address."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise OSError(f"cannot listen on {host} port {port}: {reason}; choose another --port or --host") from None
