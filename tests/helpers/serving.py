"""A real server for tests: the app of an engine under uvicorn, in a thread on this machine."""

import contextlib
import socket
import threading
import time

import openai
import uvicorn

from qwen_vl.serving.api.app import create_app
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import Engine, EngineSettings
from qwen_vl.serving.media import MediaPolicy, MediaReader

ENGINE_SETTINGS = EngineSettings(
    max_running=16, max_waiting=64, max_batch_tokens=48, page_size=16, kv_tokens=4096, num_images=32
)


class RunningServer:
    """A running server: its engine, its app, and its address."""

    def __init__(self, engine, app, address):
        self.engine, self.app, self.address = engine, app, address

    @property
    def url(self):
        """Return the base address for clients of the OpenAI protocol."""
        return f"{self.address}/v1"

    def client(self, key="none", **options):
        """Return a client of `openai` that never tries again."""
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60, **options)

    def wait_until(self, condition, seconds=10):
        """Wait until a condition of the engine's stats is met. Fail if that takes too long."""
        end = time.monotonic() + seconds
        while not condition(self.engine.stats()):
            assert time.monotonic() < end, self.engine.stats()
            time.sleep(0.02)


@contextlib.contextmanager
def tiny_engine(folder, **options):
    """Yield a started engine of a tiny checkpoint, named tiny."""
    options = {"name": "tiny", "device": "cpu", "settings": ENGINE_SETTINGS, **options}
    with Engine.load(folder, **options) as engine:
        yield engine


@contextlib.contextmanager
def running_server(engine, settings=None, *, reader=None, **options):
    """Yield the RunningServer of an engine, or of anything with its methods. options: those of `create_app`."""
    app = create_app(engine, settings or ServerSettings(), reader=reader or MediaReader(MediaPolicy()), **options)
    with running_app(app) as address:
        yield RunningServer(engine, app, address)


@contextlib.contextmanager
def running_app(app):
    """Yield the address of an app that runs under uvicorn in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
