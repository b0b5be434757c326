"""The bounds of a server as flags: their defaults are those of the settings that they belong to."""

import argparse
import dataclasses
from functools import partial
from typing import Any, NamedTuple

from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import EngineSettings
from qwen_vl.serving.media import MediaPolicy
from qwen_vl.serving.protocol.request import Limits

from .parsers import number_of


class Bound(NamedTuple):
    """A flag without its dashes, the field that it sets, its help, and whether it may be 0."""

    flag: str
    owner: type
    help: str
    field: str = ""  # of `owner`, if it is called differently
    may_be_zero: bool = False

    @property
    def name(self) -> str:
        """Return the name of the field."""
        return self.field or self.flag

    @property
    def default(self) -> Any:
        """Return the field's default."""
        default: Any = next(field.default for field in dataclasses.fields(self.owner) if field.name == self.name)
        return default


BOUNDS = (
    Bound("max_connections", ServerSettings, "open connections"),
    Bound("header_seconds", ServerSettings, "seconds for a request's headers to arrive"),
    Bound("body_seconds", ServerSettings, "seconds for its body to arrive"),
    Bound("stall_seconds", ServerSettings, "seconds that a client may leave an answer unread"),
    Bound("max_body_bytes", ServerSettings, "bytes of a request, images included"),
    Bound("max_requests", ServerSettings, "requests that are worked on; more get 429"),
    Bound("request_seconds", ServerSettings, "seconds for a whole answer"),
    Bound("drain_seconds", ServerSettings, "seconds that running requests get at the end", may_be_zero=True),
    Bound("fetch_workers", ServerSettings, "images downloaded at once"),
    Bound("decode_workers", MediaPolicy, "images decoded at once", "num_decoders"),
    Bound("max_messages", Limits, "messages of a request"),
    Bound("max_parts", Limits, "parts of all its messages"),
    Bound("max_images", Limits, "images of a request", may_be_zero=True),
    Bound("max_text", Limits, "characters of its texts together"),
    Bound("max_n", Limits, "answers to a request"),
    Bound("max_stop", Limits, "stop words", may_be_zero=True),
    Bound("max_stop_length", Limits, "characters of a stop word"),
    Bound("max_tools", Limits, "tools of a request", may_be_zero=True),
    Bound("max_image_bytes", MediaPolicy, "bytes of an image", "max_bytes"),
    Bound("max_image_pixels", MediaPolicy, "pixels of an image", "max_pixels"),
    Bound("max_image_side", MediaPolicy, "pixels of its longer side", "max_side"),
    Bound("image_seconds", MediaPolicy, "seconds of a download", "seconds"),
    Bound("max_image_redirects", MediaPolicy, "redirects of a download", "max_redirects", may_be_zero=True),
    Bound("max_model_len", EngineSettings, "tokens of a prompt with its answer (default: the model's)"),
    Bound("max_running", EngineSettings, "answers in one forward pass"),
    Bound("max_waiting", EngineSettings, "answers that wait for a place; more get 429", may_be_zero=True),
    Bound("max_batch_tokens", EngineSettings, "tokens of a forward pass"),
    Bound(
        "kv_tokens", EngineSettings, "tokens whose keys and values are kept, of each model (default: by free memory)"
    ),
    Bound("page_size", EngineSettings, "tokens of a page of keys and values"),
    Bound("num_images", EngineSettings, "images whose features are kept"),
)


def add_bounds(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each bound."""
    group = parser.add_argument_group("bounds")
    for bound in BOUNDS:
        text = bound.help if bound.default is None else f"{bound.help} (default: %(default)s)"
        kind = "SECONDS" if bound.flag.endswith("_seconds") else "N"
        check = partial(number_of, kind=float if kind == "SECONDS" else int, may_be_zero=bound.may_be_zero)
        group.add_argument(f"--{bound.flag}", type=check, default=bound.default, metavar=kind, help=text)


def bounds_of(args: argparse.Namespace, owner: type) -> dict[str, Any]:
    """Return the arguments of one kind of settings, from parsed flags."""
    return {bound.name: getattr(args, bound.flag) for bound in BOUNDS if bound.owner is owner}
