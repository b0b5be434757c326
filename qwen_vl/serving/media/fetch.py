"""Downloads of images for requests: every host is checked before a connection, and every redirect anew."""

import http.client
import io
import queue
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from ...model.download_qwen import REDIRECTS
from .addresses import FORBIDDEN, WebAddress, ip_address, is_allowed_domain, is_public, parse
from .policy import MediaError, MediaPolicy

CHUNK = 2**16
HEADERS = {"User-Agent": "qwen-vl", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}

Resolve = Callable[[str, int], Sequence[str]]  # from a host name and a port to IP addresses, or an OSError
Connect = Callable[[str, int, float], socket.socket]  # from an IP address, a port and a timeout in seconds


class Network(NamedTuple):
    """What a download uses of the world outside. Tests put their own in place."""

    resolve: Resolve
    connect: Connect
    tls: ssl.SSLContext


def resolve_name(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host name. Raise OSError if there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def connect_to(address: str, port: int, timeout: float) -> socket.socket:
    """Return a connection to an IP address. Raise OSError if there is none within `timeout` seconds."""
    return socket.create_connection((address, port), timeout)


def download(url: str, policy: MediaPolicy, network: Network) -> bytes:
    """Return the body of an http(s) address, after redirects.

    No proxy of the environment is used: it would connect to another address than the one that was checked.
    Raise MediaError if the policy forbids it, or if the body does not arrive in time and in full.
    """
    deadline = Deadline(policy.seconds)
    try:
        for _ in range(policy.max_redirects + 1):
            address = parse(url, policy.ports)
            with closing(_open(address, policy, network, deadline)) as sock:
                response = _ask(sock, address, deadline)
                target = response.headers.get("Location") if response.status in REDIRECTS else None
                if target is None:
                    return _body(response, policy.max_bytes)
            url = _joined(url, target)
        raise MediaError("redirects", policy.max_redirects)
    except MediaError:
        raise
    except TimeoutError:
        raise MediaError("timeout", policy.seconds) from None
    except (OSError, http.client.HTTPException, ValueError):  # http.client raises the last for strange answers
        raise MediaError("unreachable") from None


class Deadline:
    """The end of a whole download."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raise TimeoutError if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Body(io.RawIOBase):
    """What a socket receives. Each read waits until the deadline of the download, and not longer."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


class _Socket:
    """The part of a socket that http.client uses, under a deadline. Who opened the socket closes it."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Body(self._sock, self._deadline))

    def close(self) -> None:
        pass


def _joined(url: str, target: str) -> str:
    """Return where a redirect leads. `urljoin` would remove what `parse` refuses, so the target is looked at first."""
    if FORBIDDEN.search(target):
        raise MediaError("url")
    return urllib.parse.urljoin(url, target)


def _open(address: WebAddress, policy: MediaPolicy, network: Network, deadline: Deadline) -> socket.socket:
    """Return a connection, encrypted for https, to an IP address that the policy allows."""
    if policy.allowed_domains and not is_allowed_domain(address.host, policy.allowed_domains):
        raise MediaError("domain")
    if ip_address(address.host) is not None:
        addresses: Sequence[str] = [address.host]
    else:
        addresses = _resolved(address, network.resolve, deadline)
    if not addresses or (policy.media_urls != "any" and not all(is_public(found) for found in addresses)):
        raise MediaError("address")
    sock = _connected(addresses, address.port, network.connect, deadline)
    if address.scheme == "http":
        return sock
    try:
        sock.settimeout(deadline.left())
        return network.tls.wrap_socket(sock, server_hostname=address.host)
    except BaseException:
        sock.close()
        raise


def _resolved(address: WebAddress, resolve: Resolve, deadline: Deadline) -> Sequence[str]:
    """Return the IP addresses of a host name, and none if it has none or if no answer comes in time.

    The resolver of the system takes no timeout, so it runs in a thread that is left behind.
    """
    answers: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(address.host, address.port))
        except (OSError, UnicodeError):
            answers.put(())

    threading.Thread(target=ask, daemon=True, name="resolve").start()
    try:
        return answers.get(timeout=deadline.left())
    except (queue.Empty, TimeoutError):
        return ()


def _connected(addresses: Sequence[str], port: int, connect: Connect, deadline: Deadline) -> socket.socket:
    """Return a connection to the first address that takes one. Each gets a fair part of the time that is left."""
    for num_left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            return connect(address, port, deadline.left() / num_left)
        except OSError:
            if num_left == 1:
                raise
    raise AssertionError("there is an address")


def _ask(sock: socket.socket, address: WebAddress, deadline: Deadline) -> http.client.HTTPResponse:
    """Return the answer to a GET, of which the headers have been read."""
    connection = http.client.HTTPConnection(address.host, address.port)
    connection.sock = _Socket(sock, deadline)
    connection.auto_open = 0  # or http.client would open a connection of its own
    connection.request("GET", address.target, headers={"Host": address.authority, **HEADERS})
    return connection.getresponse()


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Return the body of an answer. Its bytes are counted as they arrive, because Content-Length may be wrong."""
    if response.status != http.client.OK:
        raise MediaError("status", response.status)
    announced = None if response.chunked else response.length
    if announced is not None and announced > max_bytes:
        raise MediaError("bytes", max_bytes)
    body = bytearray()
    while chunk := response.read(CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise MediaError("bytes", max_bytes)
    if announced is not None and len(body) < announced:
        raise MediaError("unreachable")
    return bytes(body)
