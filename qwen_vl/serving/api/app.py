"""The HTTP app: an engine behind the OpenAI protocol."""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vl.families import v1 as family
from qwen_vl.serving.api.chat import ChatRoute, find_model
from qwen_vl.serving.api.errors import answer_errors
from qwen_vl.serving.api.images import ImagePool
from qwen_vl.serving.api.metrics import Metrics
from qwen_vl.serving.api.running import Running, unavailable
from qwen_vl.serving.api.security import HostCheck, KeyCheck
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import Engine, ModelEntry
from qwen_vl.serving.media import MediaReader
from qwen_vl.serving.protocol.request import Limits
from qwen_vl.serving.protocol.response import model_card, models

CHAT = "/v1/chat/completions"
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST"})
PATHS = frozenset({CHAT, "/v1/models", "/health", "/metrics", "/version"})


def create_app(
    engine: Engine,
    settings: ServerSettings,
    *,
    reader: MediaReader,
    limits: Limits | None = None,
    route: type[ChatRoute] = ChatRoute,
) -> FastAPI:
    """Return the app of a server. The caller starts and stops the engine.

    reader: reads the images of requests. route: answers chat requests. `app.state.running` ends or refuses requests,
    for an orderly stop.
    """
    measured = Metrics(engine)
    running = Running(settings.max_requests)
    images = ImagePool(reader, measured, side=family.image_size(engine.config), fetch_workers=settings.fetch_workers)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        images.close()

    app = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.running = running
    answer_errors(app)
    chat = route(engine, settings, limits=limits or Limits(), images=images, running=running, metrics=measured)
    app.router.routes.append(Route(CHAT, chat, methods=["POST"]))
    _add_models(app, engine.model_names)
    _add_state(app, engine, running, measured)
    app.add_middleware(KeyCheck, settings=settings)
    if settings.allowed_origins:  # the key is a header that pages set themselves, so no cookies are allowed
        origins = [*settings.allowed_origins]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(CountRequests, metrics=measured)  # the outermost: it counts refused requests, too
    return app


def _add_models(app: FastAPI, entries: Sequence[ModelEntry]) -> None:
    """Add the routes that list the models."""
    created = int(time.time())

    def card(entry: ModelEntry) -> dict[str, Any]:
        return model_card(
            entry.id, created=created, root=entry.root, parent=entry.parent, max_model_len=entry.max_model_len
        )

    @app.get("/v1/models")
    async def listed() -> dict[str, Any]:
        return models([card(entry) for entry in entries])

    @app.get("/v1/models/{name:path}")
    async def one(name: str) -> dict[str, Any]:
        return card(find_model(entries, name))


def _add_state(app: FastAPI, engine: Engine, running: Running, measured: Metrics) -> None:
    """Add the routes that say how the server is."""

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        if running.refused:
            raise running.refused
        if not engine.alive:
            raise unavailable("the engine has stopped; see the log of the server")
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics() -> Response:  # not async, so it runs in a thread
        return Response(measured.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": installed_version()}


def installed_version() -> str:
    """Return the version of this package; "unknown" if it runs from its folder."""
    try:
        return metadata.version("qwen-vl")
    except metadata.PackageNotFoundError:
        return "unknown"


class CountRequests:
    """Middleware that counts requests by route, method and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.counter = app, metrics.http_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer; 499 stands for none, because the client has gone."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"  # clients choose paths, but never labels
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.counter.labels(path, method, str(status)).inc()
