"""Images from the network: limits of time and size, retries after temporary failures, clear errors."""

import contextlib
import io
import socket
import struct
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qsl, quote

import pytest
from PIL import Image

from qwen_vl.model import download_qwen
from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import read_image

pytestmark = pytest.mark.filterwarnings("error")


def encoded():
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 30, 60)).save(stream, "PNG")
    return stream.getvalue()


REQUESTS = Counter()  # by path, query included


class Handler(BaseHTTPRequestHandler):
    """A server with one path for each behavior; `/NUMBER` answers with that status.

    `/trouble?kind=KIND&times=2` behaves as KIND two times and then correctly.
    """

    def log_message(self, *args):
        pass

    def do_GET(self):
        REQUESTS[self.path] += 1
        name, _, query = self.path.strip("/").partition("?")
        if name == "trouble":
            trouble = dict(parse_qsl(query))
            name = trouble["kind"] if REQUESTS[self.path] <= int(trouble["times"]) else "good"
            self.asked_pause = trouble.get("pause")
        if name.isdigit():
            return self.reply(b"no", status=int(name))
        return getattr(self, name.replace("-", "_"))()

    def reply(self, body, status=200, kind="image/png", length=None, **headers):
        self.send_response(status)
        if getattr(self, "asked_pause", None) and status != 200:
            self.send_header("Retry-After", self.asked_pause)
        self.send_header("Content-Type", kind)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have closed the connection
            self.wfile.write(body)

    def good(self):
        self.reply(encoded())

    def unmeasured(self):
        self.reply(encoded(), length=False)

    def page(self):
        self.reply(b"<html>please log in</html>", kind="text/html; charset=utf-8")

    def redirect(self):
        self.reply(b"moved", status=302, Location="good")

    def loop(self):
        self.reply(b"moved", status=307, Location="/loop")

    def to_file(self):
        self.reply(b"moved", status=301, Location="file:///etc/passwd")

    def endless(self):
        self.reply(b"\0" * 300_000, length=False)

    def announced(self):
        self.reply(b"\0" * 300_000)

    def liar(self):
        self.reply(encoded(), length=999_999)

    def half(self):
        self.reply(encoded()[:20], length=len(encoded()))

    def silent(self):
        self.half()
        self.wfile.flush()
        time.sleep(3)

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.close()
        self.rfile.close()
        self.connection.close()

    def hangs_up(self):
        self.connection.shutdown(socket.SHUT_RDWR)

    def slow(self):
        time.sleep(1.0)

    def drip(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(60):
                self.wfile.write(b"\x89")
                time.sleep(0.03)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download_qwen, "PAUSES", (0.01, 0.02, 0.03))


@pytest.fixture(scope="module")
def server():
    """Yield the address of a server on this machine."""
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{http_server.server_port}"
    http_server.shutdown()
    http_server.server_close()


@pytest.mark.parametrize("path", ["good", "unmeasured", "redirect", "good?name=图 片"])
def test_images_from_the_network(server, path):
    assert read_image(f"{server}/{path}").getpixel((0, 0)) == (200, 30, 60)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("404", "answered 404 Not Found"),
        ("503", "answered 503"),
        ("page", "calls it text/html.*not an image"),
        ("loop", "more than 5 redirects"),
        ("to-file", "redirected to 'file:///etc/passwd'; only http"),
        ("endless", "more than 100000 bytes"),
        ("announced", "more than 100000 bytes"),
        ("liar", r"closed after \d+ of 999999 bytes"),
        ("slow", "within 0.3 seconds"),
        ("drip", "within 0.3 seconds"),
    ],
)
def test_bad_downloads(server, path, problem):
    start = time.monotonic()
    with pytest.raises(ImageError, match=problem) as caught:
        read_image(f"{server}/{path}", timeout=0.3 if "within" in problem else 10, max_bytes=100_000)
    assert f"{server}/{path}" in str(caught.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("kind", ["408", "429", "500", "502", "503", "504", "reset", "hangs-up", "half", "silent"])
def test_a_temporary_failure_is_retried(server, kind):
    path = f"/trouble?kind={kind}&times=2"
    assert read_image(server + path, timeout=3).getpixel((0, 0)) == (200, 30, 60)
    assert REQUESTS[path] == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_permanent_failure_is_not_retried(server, status):
    path = f"/trouble?kind={status}&times=9"
    with pytest.raises(ImageError, match=f"answered {status} [^,;]*; correct the address"):
        read_image(server + path)
    assert REQUESTS[path] == 1


@pytest.mark.parametrize(
    ("kind", "said"), [("503", "answered 503"), ("hangs-up", "no download"), ("half", r"20 of \d+")]
)
def test_tries_come_to_an_end(server, kind, said):
    path = f"/trouble?kind={kind}&times=9"
    with pytest.raises(ImageError, match=rf"{said}.*, 4 times; .*or use a local file"):
        read_image(server + path)
    assert REQUESTS[path] == 4


@pytest.mark.parametrize(
    ("pause", "waited"),
    [
        ("2", [2.0]),
        ("a date", [pytest.approx(4, abs=2)]),
        ("soon", [0.01]),
        ("0", [0.01]),
        (formatdate(0, usegmt=True), [0.01]),
        ("9", []),  # longer than the time limit
        ("9" * 5000, []),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_server_says_when_to_retry(server, monkeypatch, pause, waited):
    """Check that the server's pause is used if it fits into the time limit, and that there is no retry otherwise."""
    date = formatdate(time.time() + 5, usegmt=True)
    pauses, path = [], f"/trouble?kind=503&times=1&pause={quote(pause.replace('a date', date))}"
    clock = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=pauses.append)  # other threads sleep on
    monkeypatch.setattr(download_qwen, "time", clock)
    if waited:
        assert read_image(server + path, timeout=8).size == (6, 4)
    else:
        with pytest.raises(ImageError, match="answered 503 Service Unavailable; try again later"):
            read_image(server + path, timeout=8)
    assert pauses == waited and REQUESTS[path] == 1 + bool(waited)


def test_addresses_that_lead_nowhere():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        for address, problem in (
            (f"http://127.0.0.1:{port}/a.png", "refused"),
            ("http://127.0.0.1:port/a.png", "no download"),
            ("http://[::1/a.png", "no download"),
            ("http:///a.png", "no download"),
            ("file:///etc/passwd", "file:// is not read"),
            ("FTP://host/a.png", "ftp:// is not read"),
        ):
            with pytest.raises(ImageError, match=problem):
                read_image(address, timeout=2)
