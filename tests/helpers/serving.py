"""A real server for tests: the app of an engine under uvicorn, in a thread on this machine."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

import openai
import uvicorn

from qwen_vl.serving.api.app import create_app
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.engine import Engine, EngineSettings, EngineStats, Event, ModelEntry
from qwen_vl.serving.media import MediaPolicy, MediaReader

ENGINE_SETTINGS = EngineSettings(
    max_running=16, max_waiting=64, max_batch_tokens=48, page_size=16, kv_tokens=4096, num_images=32
)


class RunningServer:
    """A running server: its engine, its app, and its address."""

    def __init__(self, engine, app, address, loop):
        self.engine, self.app, self.address, self.loop = engine, app, address, loop

    @property
    def url(self):
        """Return the base address for clients of the OpenAI protocol."""
        return f"{self.address}/v1"

    def client(self, key="none", timeout=60):
        """Return a client of `openai` that never tries again."""
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=timeout)

    def in_loop(self, function, *arguments):
        """Call a function in the event loop of the server, and wait until it is done."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(*arguments), done.set()))
        assert done.wait(5)

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
    with running_app(app) as (address, loop):
        yield RunningServer(engine, app, address, loop)


@contextlib.contextmanager
def running_app(app):
    """Yield (address, event loop) of an app that runs under uvicorn in a thread."""
    server, loops = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)), []

    async def serve(listener):
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", loops[0]
        finally:
            server.should_exit = True
            thread.join()


class ScriptedEngine:
    """Says what a test wants, with the tokenizer and settings of a loaded model.

    `script(request)` returns an exception that `submit` raises, or a list: texts and lists of ids come as events, an
    `Event` is sent as it is, a `threading.Event` is waited for. After the last item comes the event "stop".
    """

    def __init__(self, model, tokenizer, script, names=("tiny",)):
        self.tokenizer, self.script = tokenizer, script
        self.config, self.generation_config = model.config, model.generation_config
        self.model_names = [
            ModelEntry(name, f"/{name}", None if name == names[0] else names[0], 1024) for name in names
        ]
        self.alive, self.requests, self.cancelled, self.running = True, [], [], 0
        self.lock = threading.Lock()

    def submit(self, request, on_event):
        items = self.script(request)
        if isinstance(items, Exception):
            raise items
        closed = threading.Event()
        self.requests.append(request)
        with self.lock:
            self.running += 1

        def end():
            with self.lock:
                self.running -= not closed.is_set()
                closed.set()

        def say():
            for item in [*items, Event([], None, "stop")]:
                if isinstance(item, threading.Event):
                    while not item.wait(0.01) and not closed.is_set():
                        pass
                    continue
                ids = self.tokenizer.encode(item) if isinstance(item, str) else item
                event = item if isinstance(item, Event) else Event(ids, [-0.5] * len(ids) if request.logprobs else None)
                if closed.is_set():
                    break
                if event.finish:
                    end()
                on_event(event)

        def cancel():
            if not closed.is_set():
                self.cancelled.append(request)
                end()

        threading.Thread(target=say, daemon=True).start()
        return cancel

    def stats(self):
        return EngineStats(self.running, 0, 0, 0, 0, 0, 0, 0)


def send(server, path, body=None, headers=None, method=None):
    """Send a request, and return (status, headers, bytes of the body). body: bytes, or a value as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if headers is None and data is None else {"Content-Type": "application/json", **(headers or {})}
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def refused(answer):
    """Return (status, code, param) of an answer of `send` that is an error in OpenAI's form."""
    status, headers, content = answer
    assert headers["Content-Type"] == "application/json", content
    body = json.loads(content)
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"] and body["error"]["type"]
    return status, body["error"]["code"], body["error"]["param"]
