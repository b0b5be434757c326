"""A running server on loopback with an engine that is made up: connections, the end by a signal, the access log."""

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request

from qwen_vl.serving.api import access_log, connections, server
from qwen_vl.serving.api.errors import answer_errors
from qwen_vl.serving.api.running import Running
from qwen_vl.serving.api.server import Server, listen
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.api.sse import EventSender
from qwen_vl.serving.protocol.errors import ApiError

QUICK = {"header_seconds": 0.3, "stall_seconds": 0.5, "drain_seconds": 5}


class Numbers:
    """A route that sends a number every 50 ms: `?20x3` sends 20, each with 3000 bytes; `?` goes on until `enough`."""

    def __init__(self, running):
        self.running, self.enough = running, False

    async def __call__(self, scope, receive, send):
        count, _, size = scope["query_string"].decode().partition("x")

        async def numbers():
            for number in range(int(count or 10**6)):
                if not count and self.enough:
                    break
                yield {"n": number, "padding": "x" * 1000 * int(size or 0)}
                await asyncio.sleep(0.05)

        sender = EventSender(send)
        try:
            with self.running.slot():
                await self.running.guard(sender.send_all(numbers()), receive, seconds=20)
        except ClientDisconnect:
            pass
        except ApiError as error:
            if not sender.started:
                raise
            await sender.fail(error)


def make_app(engine):
    """Return an app with the routes that these tests need, as the real one uses Running."""
    app = FastAPI(openapi_url=None)
    app.state.running = running = Running(8)
    answer_errors(app)

    @app.get("/health")
    async def health():
        if running.refused or not engine.alive:
            raise running.refused or ApiError(503, "dead")
        return {}

    @app.post("/echo")
    async def echo(request: Request):
        access_log.note(request.scope, model="tiny model\n")
        return await request.json()

    app.state.numbers = Numbers(running)
    app.add_route("/stream", app.state.numbers, methods=["POST"])
    return app


@contextmanager
def running_server(**settings):
    """Yield a server that runs in a thread, with its port, engine and, at the end, its failure."""
    engine = SimpleNamespace(alive=True)
    chosen = ServerSettings(**(QUICK | settings))
    app = make_app(engine)
    one = Server(app, engine, chosen)
    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        found = SimpleNamespace(server=one, engine=engine, port=port, numbers=app.state.numbers, failure="none")
        thread = threading.Thread(target=lambda: setattr(found, "failure", one.serve_on(bound)))
        thread.start()
        found.join = thread.join
        try:
            while not one.started:
                time.sleep(0.01)
            yield found
        finally:
            one.stop()
            one.stop()
            thread.join(10)
            assert not thread.is_alive()


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def connect(found):
    client = socket.create_connection(("127.0.0.1", found.port), timeout=10)
    return client


def rest(client):
    """Return what comes until the other side closes."""
    parts = []
    with suppress(ConnectionResetError):
        while part := client.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def get(found, path, method="GET", body=b""):
    """Return (status, text) of a whole request."""
    with connect(found) as client:
        kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if body else b""
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode() + kind + b"\r\n" + body)
        head, _, text = rest(client).partition(b"\r\n\r\n")
    return int(head.split()[1]), text.decode()


def code_of(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_client_that_sends_no_headers_is_closed():
    with running_server() as found:
        for beginning in (b"", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /he"):
            with connect(found) as client:
                client.sendall(beginning)
                wait_until(lambda: found.server.server_state.connections)

                def is_closed(client=client, more=b"X" if beginning else b""):
                    time.sleep(0.05)
                    with suppress(OSError):
                        client.sendall(more)  # a byte now and then gains no time
                    return not found.server.server_state.connections

                wait_until(is_closed, seconds=8)
                assert rest(client).count(b"HTTP/1.1 200 OK") == beginning.count(b"\r\n\r\n")
        assert get(found, "/health")[0] == 200


def test_requests_on_one_connection_are_not_cut():
    with running_server(header_seconds=0.2) as found, connect(found) as client:
        for _ in range(3):
            client.sendall(b"POST /stream?8 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                part = client.recv(2**16)
                assert part, answer
                answer += part
            assert b'"n": 7' in answer and b"[DONE]" in answer
            time.sleep(0.3)  # idle connections live longer


def test_too_many_connections_are_told_so(monkeypatch):
    monkeypatch.setattr(connections, "MAX_REFUSED", 2)
    with running_server(max_connections=2, header_seconds=5) as found:
        held = [connect(found) for _ in range(2)]
        wait_until(lambda: len(found.server.server_state.connections) == 2)
        refused = [connect(found) for _ in range(4)]
        for client in refused:
            with suppress(OSError):
                client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = [rest(client) for client in refused]
        assert [code_of(answer) for answer in answers if answer] == [(503, "unavailable")] * 2
        for client in held + refused:
            client.close()
        wait_until(lambda: not found.server.server_state.connections)
        assert get(found, "/health")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n no: space\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_an_error_in_our_form(sent):
    with running_server() as found:
        with connect(found) as client:
            client.sendall(sent)
            assert code_of(rest(client)) == (400, "invalid_http")
        assert get(found, "/health")[0] == 200


def test_a_broken_body_ends_the_request():
    with running_server() as found:
        head = b"POST /%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with connect(found) as client:
            client.sendall(head % b"echo" + b"zz\r\n")
            assert code_of(rest(client)) == (400, "invalid_http")
        with connect(found) as client:  # an answer that has begun cannot become an error
            client.sendall(head % b"stream?100")
            assert client.recv(2**16).startswith(b"HTTP/1.1 200")
            client.sendall(b"zz\r\n")
            assert b"invalid_http" not in rest(client)
        wait_until(lambda: found.server.requests.num_running == 0)
        assert get(found, "/echo", "POST", b"[1]") == (200, "[1]")


def test_a_client_that_reads_nothing_is_cut():
    with running_server() as found, connect(found) as client:
        client.sendall(b"POST /stream?400x200 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        wait_until(lambda: found.server.requests.num_running)
        wait_until(lambda: not found.server.requests.num_running and not found.server.server_state.connections)


def begin(found, path):
    client = connect(found)
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert client.recv(2**16).startswith(b"HTTP/1.1 200")
    return client


def test_a_signal_drains():
    with running_server(drain_seconds=20) as found:
        client = begin(found, "/stream?")
        found.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: found.server.requests.refused)
        assert get(found, "/health")[0] == get(found, "/stream?1", "POST")[0] == 503
        found.numbers.enough = True
        assert rest(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        found.join(5)
        assert found.failure is None and not found.server._captured_signals
        with pytest.raises(ConnectionRefusedError):
            connect(found)


@pytest.mark.parametrize("signals, drain_seconds", [(1, 0.3), (2, 30)])
def test_what_does_not_finish_gets_an_error(signals, drain_seconds):
    with running_server(drain_seconds=drain_seconds) as found:
        client = begin(found, "/stream?1000")
        for _ in range(signals):
            found.server.handle_exit(signal.SIGTERM, None)
        last = rest(client)
        assert b'data: {"error": {"message": "the server is stopping"' in last and b"[DONE]" not in last
        found.join(5)
        assert found.failure is None


def test_a_dead_engine_ends_the_server(monkeypatch):
    monkeypatch.setattr(server, "FAREWELL_SECONDS", 3)
    with running_server() as found:
        client = begin(found, "/stream?1000")
        found.engine.alive = False
        wait_until(lambda: found.server.requests.refused)
        assert get(found, "/health")[0] == get(found, "/stream?1", "POST")[0] == 503
        assert b'data: {"error": {"message": "the engine has died' in rest(client)
        found.join(5)
        assert found.failure == server.ENGINE_DIED


def test_a_taken_port_and_a_wrong_host_are_told():
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(OSError, match=r"127\.0\.0\.1 port \d+: Address already in use; choose another --port"):
            listen("127.0.0.1", bound.getsockname()[1])
    with pytest.raises(OSError, match=r"--host 192\.0\.2\.1|192\.0\.2\.1 port"):
        listen("192.0.2.1", 0)
    with pytest.raises(OSError, match="--host no such host: not an address"):
        listen("no such host", 0)
    assert server.address_of(SimpleNamespace(getsockname=lambda: ("::1", 80, 0, 0))) == "http://[::1]:80"


@pytest.mark.parametrize("log_requests", [False, True])
def test_the_log_has_one_line_without_texts(caplog, log_requests):
    caplog.set_level(logging.INFO, "qwen_vl")
    body = '{"secret": "\\u001b[2J 你好"}'.encode()
    with running_server(log_requests=log_requests) as found:
        get(found, "/health")
        get(found, "/echo?secret", "POST", body)
        get(found, "/a%0Ab%1B", "POST")
    lines = [record.getMessage() for record in caplog.records if record.name == access_log.__name__]
    if log_requests:
        assert lines.pop(1).endswith(' request {"secret": "\\u001b[2J 你好"}')
        assert lines.pop(1).endswith(' answer {"secret":"\\u001b[2J 你好"}')
        lines = [line for line in lines if "answer" not in line]
    assert len(lines) == 2 and "secret" not in "".join(lines)
    assert lines[0].startswith("POST /echo 200 id=req-") and lines[0].endswith(" model=tiny?model\\n")
    assert f" client=127.0.0.1 bytes_in={len(body)} bytes_out=" in lines[0]
    assert lines[1].startswith("POST /a\\nb\\x1b 404 id=req-")
