"""`qwen-vl serve MODEL`: a server with OpenAI's protocol."""

import argparse
import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint.dtypes import dtype_or_auto
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.hubs import names
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import Engine, EngineSettings
from qwen_vl.serving.media import MediaPolicy, MediaReader
from qwen_vl.serving.protocol.request import Limits

from .bounds import add_bounds, bounds_of
from .parsers import Parser, add_hub, add_loading, by_name, name_models

KEY = "QWEN_VL_API_KEY"
LIBRARIES = ("fastapi", "prometheus_client", "uvicorn")
STOP_SECONDS = 30  # that the threads of the engine may take to end


def make_parser() -> Parser:
    """Build the parser of `qwen-vl serve`."""
    parser = Parser(prog="qwen-vl serve", description="Serve a Qwen-VL model as OpenAI does.", allow_abbrev=False)
    parser.add_argument("model", help="folder of a checkpoint or an adapter, or a hub name")
    parser.add_argument("--adapters", nargs="+", default=[], metavar="NAME=FOLDER", help="adapters on the model")
    parser.add_argument("--served_model_name", metavar="NAME", help="name of the model (default: that of its folder)")
    add_loading(parser)
    add_hub(parser)
    access = parser.add_argument_group("who may ask")
    access.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    access.add_argument("--port", type=port_number, default=8000, help="port, 0 for a free one (default: %(default)s)")
    access.add_argument(
        "--api_key", nargs="+", metavar="KEY", help=f"keys, one of which a request needs; better in ${KEY}, with commas"
    )
    access.add_argument("--insecure", action="store_true", help="serve other machines without a key")
    access.add_argument(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME", help="further names of this server in requests"
    )
    access.add_argument(
        "--allowed_origins", nargs="+", default=[], metavar="ORIGIN", help="web pages that may ask (CORS); * for all"
    )
    media = parser.add_argument_group("images that a request may name")
    media.add_argument(
        "--media_urls",
        default="public",
        choices=["public", "off", "any"],
        help="addresses to download from: public ones, none, or private ones too (default: %(default)s)",
    )
    media.add_argument(
        "--allowed_media_domains", nargs="+", default=[], metavar="DOMAIN", help="only these; *.example.org works"
    )
    media.add_argument("--allowed_local_media_path", type=Path, metavar="FOLDER", help="folder of files to be named")
    add_bounds(parser)
    parser.add_argument("--no_prefix_sharing", action="store_true", help="compute every prompt as a whole")
    parser.add_argument("--log_requests", action="store_true", help="log texts and images of requests and answers")
    return parser


def main(argv: Sequence[str] | None = None, *, as_original: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. Exit with code 1 if the engine dies.

    as_original: with the rules of the original's `openai_api.py`.
    Raise ImportError, OSError or ValueError, before the weights are read, for what cannot work.
    """
    args = make_parser().parse_args(argv)
    name = args.served_model_name or name_of(args.model)
    name_models(args, "model", "base")
    check_libraries()
    from qwen_vl.serving.api.app import create_app
    from qwen_vl.serving.api.chat import ChatRoute
    from qwen_vl.serving.api.original import OriginalRoute
    from qwen_vl.serving.api.server import Server, address_of, listen

    settings, policy, limits = server_settings(args), media_policy(args), Limits(**bounds_of(args, Limits))
    adapters = by_name("--adapters", args.adapters)
    if name in adapters:
        raise ValueError(f"--adapters {name}: the name of the base as well; give the adapter another one")
    for adapter in adapters.values():
        Adapter.open(adapter).check_start()
    folder = ModelFolder.open(args.model)
    bound = listen(settings.host, settings.port)
    engine = Engine.load(
        folder,
        adapters=adapters,
        settings=engine_settings(args),
        name=name,
        device=args.device,
        dtype=dtype_or_auto(args.dtype),
        base=args.base,
        trust_base=args.trust_base,
    )
    route = OriginalRoute if as_original else ChatRoute
    app = create_app(engine, settings, reader=MediaReader(policy), limits=limits, route=route)
    engine.start()
    with logging_to_stderr():
        try:
            bound.listen()  # so that clients who come now wait, and are not refused
            names = ", ".join(entry.id for entry in engine.model_names)
            print(f"serving {names} at {address_of(bound)}/v1", flush=True)
            failure = Server(app, engine, settings).serve_on(bound)
        finally:
            bound.close()
            with within(STOP_SECONDS):
                engine.stop()
    if failure:
        raise SystemExit(f"error: {failure}")


def check_libraries() -> None:
    """Raise ImportError if a library of the extra "serve" is missing."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ImportError(f"the server needs {', '.join(missing)}; install it with: pip install 'qwen-vl[serve]'")


def server_settings(args: argparse.Namespace) -> ServerSettings:
    """Return the settings of the flags and of the key in the environment."""
    keys = args.api_key or [key.strip() for key in os.environ.get(KEY, "").split(",") if key.strip()]
    return ServerSettings(
        host=args.host,
        port=args.port,
        api_keys=tuple(keys),
        insecure=args.insecure,
        allowed_hosts=tuple(name.lower() for name in args.allowed_hosts),
        allowed_origins=tuple(args.allowed_origins),
        log_requests=args.log_requests,
        **bounds_of(args, ServerSettings),
    )


def media_policy(args: argparse.Namespace) -> MediaPolicy:
    """Return what the flags let a request read. Raise ValueError if the folder of local files is missing."""
    folder = args.allowed_local_media_path
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--allowed_local_media_path {folder}: no such folder; name the folder of the images")
    return MediaPolicy(
        media_urls=args.media_urls,
        allowed_domains=tuple(args.allowed_media_domains),
        allowed_local_dir=folder,
        **bounds_of(args, MediaPolicy),
    )


def engine_settings(args: argparse.Namespace) -> EngineSettings:
    """Return the settings of the engine. Its requests have the time limit of the server's."""
    sizes = bounds_of(args, EngineSettings)
    return EngineSettings(prefix_sharing=not args.no_prefix_sharing, request_seconds=args.request_seconds, **sizes)


def name_of(model: str) -> str:
    """Return the name by which requests ask for a model: the last part of its folder or hub name."""
    name = None if os.path.exists(model) else names.parse(model)
    return name.repo.rpartition("/")[2] if name else os.path.basename(os.path.abspath(model))


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """End the process if the block takes longer. One that hangs would never be started again by its supervisor."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def port_number(text: str) -> int:
    """Return a port, for argparse."""
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text}: use a number from 0 to {2**16 - 1}")
    return int(text)


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Let this project's own log lines go to stderr, with their time, within this block."""
    handler, logger = logging.StreamHandler(), logging.getLogger("qwen_vl")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
