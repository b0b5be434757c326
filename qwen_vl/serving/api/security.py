"""Who may ask: the checks that each request passes before a route sees it."""

import hashlib
import hmac
import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vl.serving.api.errors import error_response
from qwen_vl.serving.api.settings import ServerSettings, may_be_called
from qwen_vl.serving.protocol.errors import ApiError

OPEN_PATHS = frozenset({"/health"})  # load balancers have no key


class HostCheck:
    """Middleware that refuses requests whose Host header names another server."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] != "http" or may_be_called(host_of(scope), self.settings):
            await self.app(scope, receive, send)
            return
        error = ApiError(403, "this Host header is not a name of this server; see --allowed_hosts", code="invalid_host")
        await error_response(error)(scope, receive, send)


class KeyCheck:
    """Middleware that refuses requests without one of the API keys, but for OPEN_PATHS."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.keys = app, settings.api_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] == "http" and self.keys and scope["path"] not in OPEN_PATHS:
            key = key_of(scope)
            if not is_known(key, self.keys):
                error = ApiError(401, "missing or wrong API key; send the header Authorization: Bearer KEY")
                error.code = "invalid_api_key"
                response = error_response(error)
                response.headers["WWW-Authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def host_of(scope: Scope) -> str:
    """Return the Host header without its port; empty if it is missing or malformed."""
    host = Request(scope).headers.get("host", "")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", host)
    return match[1] if match else ""


def key_of(scope: Scope) -> str:
    """Return the key of the Authorization header; empty if there is none."""
    kind, _, key = Request(scope).headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def is_known(key: str, keys: Sequence[str]) -> bool:
    """Return whether `key` is one of `keys`. The time says nothing about which characters were right."""
    sent = key.encode("utf-8", "surrogateescape")
    return any([hmac.compare_digest(sent, known.encode()) for known in keys])


def sharing_key(scope: Scope, settings: ServerSettings) -> str:
    """Return what requests must have in common to share keys and values: a hash of the API key, or empty."""
    return hashlib.sha256(key_of(scope).encode("utf-8", "surrogateescape")).hexdigest() if settings.api_keys else ""
