"""Images from the network: a download within a time limit, retried after a temporary failure."""

import functools
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any

TIMEOUT = 10.0  # seconds for one download, all tries and pauses included
MAX_BYTES = 20 * 2**20
MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
TEMPORARY = {408, 429, 500, 502, 503, 504}  # status codes of a server that may answer soon
PAUSES = (0.5, 1.0, 2.0)  # seconds before the second, third and last try, unless the server says how long
LOST_CONNECTION = (
    *(ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.IncompleteRead, ssl.SSLEOFError),
)
SHOWN_LENGTH = 100  # characters of a reference that an error shows


class ImageError(ValueError):
    """An image that cannot be opened. The message says which one, why, and what to do."""


class ShortBody(OSError):
    """A connection that closed before the whole body arrived."""


def scheme_of(reference: str) -> str | None:
    """Return the lower-case scheme of an address ("http", "data", "file" ..), or None for a path."""
    if reference[:5].lower() == "data:":
        return "data"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", reference)
    return match.group(1).lower() if match else None


def shown(reference: str) -> str:
    """Return the reference in quotes for an error message: one line, never a whole data URI."""
    if len(reference) <= SHOWN_LENGTH:
        return repr(reference)
    return f"{reference[:SHOWN_LENGTH]!r}... ({len(reference)} characters)"


def too_many_bytes(name: str, max_bytes: int) -> ImageError:
    """Return the ImageError for an image of more than `max_bytes`."""
    return ImageError(f"image {name}: more than {max_bytes} bytes; give a smaller image, or a local file")


def download(url: str, timeout: float = TIMEOUT, max_bytes: int = MAX_BYTES) -> tuple[bytes, str]:
    """Return (bytes, content type) of an http(s) address, after at most MAX_REDIRECTS redirects.

    A temporary failure (a busy server, a lost connection, a body that stops) is retried after a pause, for which the
    server may send the length (Retry-After). `timeout` seconds bound all tries and pauses. Raise ImageError if no try
    succeeds, or if the image has more than `max_bytes`.
    """
    name, deadline = shown(url), time.monotonic() + timeout
    for num_tries, pause in enumerate((*PAUSES, None), start=1):
        try:
            with _request(url, name, deadline) as response:
                return _read_limited(response, name, deadline, max_bytes), response.headers.get_content_type()
        except ImageError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            pause = _pause_after(error, pause)
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if pause is None or time.monotonic() + pause >= deadline:
                raise _failure(error, name, timeout, num_tries) from error
        time.sleep(pause)
    raise AssertionError("the last try has no pause")


def _reason(error: Exception) -> Exception:
    """Return the error that an error of urllib wraps, or the error itself."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return error.reason
    return error


def _pause_after(error: Exception, pause: float | None) -> float | None:
    """Return seconds before the next try: `pause`, or what the server asks for; None if a retry cannot help."""
    if pause is None or not isinstance(error, urllib.error.HTTPError):
        may_pass = isinstance(_reason(error), (*LOST_CONNECTION, ShortBody, TimeoutError))
        return pause if may_pass else None
    return (_retry_after(error.headers) or pause) if error.code in TEMPORARY else None


def _retry_after(headers: Any) -> float | None:
    """Return the seconds that a server asks for, by a number or a date; None if the header is absent or unreadable."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _failure(error: Exception, name: str, timeout: float, num_tries: int) -> ImageError:
    """Return the ImageError for the error of the last of `num_tries` tries."""
    times = f", {num_tries} times" if num_tries > 1 else ""
    reason = _reason(error)
    if isinstance(error, urllib.error.HTTPError):
        cure = "try again later, or use a local file" if error.code in TEMPORARY else "correct the address"
        return ImageError(f"image {name}: the server answered {error.code} {error.reason}{times}; {cure}")
    if isinstance(reason, TimeoutError):
        return ImageError(f"image {name}: not there within {timeout:g} seconds{times}; try again, or use a local file")
    return ImageError(
        f"image {name}: no download ({reason}){times}; check the address and the network, or use a local file"
    )


class _Connection(http.client.HTTPConnection):
    """A connection with the whole timeout for the response, but a third of it between parts of the body."""

    timeout: float

    def getresponse(self) -> http.client.HTTPResponse:
        sock = self.sock  # the connection drops it if the server is going to close
        response = super().getresponse()
        if sock.fileno() >= 0:
            sock.settimeout(self.timeout / 3)
        return response


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    _context: ssl.SSLContext

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, req, context=self._context)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Return a urllib opener for http and https alone, with the proxies of the environment. Redirects are errors."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _HTTPHandler(),
        _HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _request(url: str, name: str, deadline: float) -> Any:
    """Return the response to a GET, after redirects.

    urllib does not follow them here: it would read their bodies without a limit, and go to ftp.
    """
    for _ in range(MAX_REDIRECTS + 1):
        request = urllib.request.Request(_ascii_url(url), headers={"User-Agent": "qwen-vl"})
        try:
            return _opener().open(request, timeout=_time_left(deadline))
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in REDIRECTS or not target:
                raise
            error.close()
        url = urllib.parse.urljoin(url, target)
        if scheme_of(url) not in ("http", "https"):
            raise ImageError(f"image {name}: redirected to {shown(url)}; only http(s) is followed")
    raise ImageError(f"image {name}: more than {MAX_REDIRECTS} redirects; use the final address")


def _ascii_url(url: str) -> str:
    """Return the address with spaces and non-ASCII characters encoded."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(part, safe="%/:=&?+,;@!$'()*~[]") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _read_limited(response: Any, name: str, deadline: float, max_bytes: int) -> bytes:
    """Return the body. Its bytes are counted as they arrive, because a Content-Length may be wrong."""
    announced = None if response.chunked else response.length
    body = bytearray()
    while announced is None or len(body) < announced:
        chunk = response.read1(2**16)
        if not chunk:
            break
        body += chunk
        if len(body) > max_bytes:
            raise too_many_bytes(name, max_bytes)
        _time_left(deadline)
    if announced is not None and len(body) < announced:
        raise ShortBody(f"the connection closed after {len(body)} of {announced} bytes")
    return bytes(body)


def _time_left(deadline: float) -> float:
    """Return the seconds until the deadline. Raise TimeoutError if it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
