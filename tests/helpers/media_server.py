"""A web of hosts for tests: names and addresses that are made up, and one server on this machine behind all of them."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from helpers.images import encoded

PUBLIC = "93.184.216.34"


class Handler(BaseHTTPRequestHandler):
    """One path for each behavior of a host; `/NUMBER` answers with that status, `/to?URL` redirects."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.requests.append((self.headers["Host"], self.path, dict(self.headers)))
        name = urlsplit(self.path).path.strip("/")
        with contextlib.suppress(OSError):  # the client may have closed the connection
            if name.isdigit():
                return self.reply(b"no", status=int(name))
            getattr(self, name.partition(".")[0].replace("-", "_"))()

    def reply(self, body, status=200, length=None, **headers):
        self.send_response(status)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self):
        self.reply(encoded())

    def cookie(self):
        self.reply(b"", status=302, Location="/good.png", Set_Cookie="a=b")

    def unmeasured(self):
        self.reply(encoded(), length=False)

    def chunked(self):
        self.protocol_version = "HTTP/1.1"
        body = encoded()
        self.reply(b"", length=False, Transfer_Encoding="chunked")
        self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:20], body[20:], b"")))

    def to(self):
        self.reply(b"moved", status=302, Location=parse_qs(urlsplit(self.path).query)["url"][0])

    def count(self):
        number = int(parse_qs(urlsplit(self.path).query)["n"][0])
        self.reply(b"", status=307, Location=f"/count?n={number - 1}" if number > 1 else "/good.png")

    def loop(self):
        self.reply(b"moved", status=308, Location="/loop")

    def nowhere(self):
        self.reply(b"moved", status=301)

    def endless(self):
        self.reply(b"", length=False)
        while True:
            self.wfile.write(b"\0" * 2**16)

    def endless_redirect(self):
        self.reply(b"", status=302, length=False, Location="/good.png")
        while True:
            self.wfile.write(b"\0" * 2**16)

    def endless_headers(self):
        self.send_response(200)
        self.flush_headers()
        while True:
            self.wfile.write(b"X-More: " + b"a" * 1000 + b"\r\n")

    def endless_line(self):
        while True:
            self.wfile.write(b"a" * 2**16)

    def endless_continue(self):
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def announced(self):
        self.reply(encoded(), length=10**12)

    def liar(self):
        self.reply(encoded(), length=len(encoded()) + 9)

    def modest(self):
        self.reply(encoded() + b"more", length=len(encoded()))

    def negative(self):
        self.reply(encoded(), length=-5)

    def page(self):
        self.reply(b"<html>please log in</html>", Content_Type="image/png")

    def silent(self):
        time.sleep(2)

    def stops(self):
        self.reply(encoded()[:20], length=len(encoded()))
        self.wfile.flush()
        time.sleep(2)

    def drip(self):
        self.reply(b"", length=False)
        while True:
            self.wfile.write(b"\x89")
            time.sleep(0.03)

    def drip_headers(self):
        for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 100:
            self.wfile.write(bytes([letter]))
            time.sleep(0.03)

    def hangs_up(self):
        self.connection.shutdown(socket.SHUT_RDWR)

    def nonsense(self):
        self.wfile.write(b"220 mail.example ESMTP\r\n")


class Web:
    """Hosts by name. `names` maps one to its addresses, or to a list of answers that are given one after another.

    `resolve` and `connect` are for a MediaReader. A connection to any address ends at the server on this machine.
    """

    def __init__(self, port):
        self.port, self.names = port, {"images.example": [PUBLIC], "other.example": ["1.1.1.1"]}
        self.asked, self.connected, self.dead = [], [], set()

    def resolve(self, host, port):
        self.asked.append(host)
        addresses = self.names.get(host)
        if addresses is None:
            raise socket.gaierror("unknown name")
        return addresses.pop(0) if addresses and isinstance(addresses[0], list) else addresses

    def connect(self, address, port, timeout):
        self.connected.append((address, port))
        if address in self.dead:
            raise ConnectionRefusedError
        return socket.create_connection(("127.0.0.1", self.port), timeout)


@contextlib.contextmanager
def media_server(tls=None):
    """Yield a running server, with encryption if `tls` is an ssl.SSLContext. `requests` lists what it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.requests = True, []
    server.handle_error = lambda *args: None  # of clients that do not trust its certificate
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
