"""Requests of the OpenAI protocol, for a judge and for a model behind an address: bounded tries, one clear error."""

import http.client
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image

from qwen_vl.files import data_uri

TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # a server may answer the same request in a moment
LOST = (TimeoutError, ConnectionError, http.client.HTTPException)
MAX_SHOWN = 300  # characters of a server's own message
MAX_PAUSE = 60.0
IMAGE_KIND = "image/png"  # of an encoded image whose format has no MIME type
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Endpoint:
    """A server of the OpenAI protocol. `url` ends before /chat/completions; the key is never shown."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 300.0  # seconds of one try
    tries: int = 6
    pause: float = 1.0  # seconds before the second try, doubled before each later one

    @classmethod
    def at(cls, address: str, key: str | None = None) -> "Endpoint":
        """Return the endpoint of an address, with /v1 if it has no path; raise ValueError if it is no http address."""
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{address}: no address of a server; write it as http://host:8000/v1")
        path = parts.path.rstrip("/") or "/v1"
        return cls(urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", "")), key or None)

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a GET request; raise OSError as `post` does."""
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a POST request.

        A busy server, a timeout and a lost connection are tried again, with growing pauses. Raise OSError, naming the
        server, what it said and what to do, for a server that refuses or cannot be reached, and after the last try.
        """
        return self._ask(path, json.dumps(body, ensure_ascii=False).encode("utf-8"))

    def open(self, path: str, body: bytes | None) -> http.client.HTTPResponse:
        """Send one request, a GET without a body, and return the reply to read from.

        Raise urllib.error.URLError, or one of LOST, if the server refuses or cannot be reached.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers)
        reply: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=self.timeout)
        return reply

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        url, pause = f"{self.url}/{path}", self.pause
        for tries_left in range(self.tries - 1, -1, -1):
            try:
                with self.open(path, body) as reply:
                    return _object(reply.read(), url)
            except (urllib.error.URLError, *LOST) as error:
                problem, is_temporary, wanted = _understand(error)
                if not is_temporary or not tries_left:
                    tried = f" after {self.tries} tries" if is_temporary else ""
                    kept = "" if body is None else "; what has been answered is kept"
                    raise OSError(f"{url}: {problem}{tried}{kept}") from error
            time.sleep(min(max(pause, wanted), MAX_PAUSE))
            pause *= 2
        raise AssertionError("the last try returns or raises")


def _object(content: bytes, url: str) -> dict[str, Any]:
    """Return the JSON object of a reply; raise OSError for anything else."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise OSError(f"{url}: answers something other than JSON; is it a server of the OpenAI protocol?") from error
    if not isinstance(value, dict):
        raise OSError(f"{url}: answers {str(value)[:MAX_SHOWN]}, no JSON object; is it of the OpenAI protocol?")
    return value


def _understand(error: Exception) -> tuple[str, bool, float]:
    """Return (what is wrong and what to do, whether to try again, seconds that the server asks to wait)."""
    if isinstance(error, urllib.error.HTTPError):
        said = " ".join(error.read().decode("utf-8", "replace").split())[:MAX_SHOWN]
        after = error.headers.get("Retry-After", "")
        advice = {401: "; check the key", 403: "; check the key", 404: "; check the address and the model"}
        problem = f"answers {error.code} {error.reason} ({said}){advice.get(error.code, '')}"
        return problem, error.code in TEMPORARY, float(after) if after.isdigit() else 0.0
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    is_refused = isinstance(reason, ConnectionRefusedError)
    is_temporary = isinstance(reason, LOST) and not is_refused
    return f"cannot be reached ({reason or type(reason).__name__}); check the address and the server", is_temporary, 0.0


def concurrently(work: Callable[[In], Out], items: Sequence[In], workers: int) -> Iterator[tuple[int, Out]]:
    """Yield (index, work(item)) as the items are done, `workers` at a time. The first error ends it.

    What was in progress then is waited for, and yielded before the error is raised.
    """
    failure: BaseException | None = None
    waiting = iter(enumerate(items))
    running: dict[Future[Out], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        while True:
            while failure is None and len(running) < workers and (entry := next(waiting, None)) is not None:
                running[pool.submit(work, entry[1])] = entry[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, error = running.pop(future), future.exception()
                if error is None:
                    yield index, future.result()
                else:
                    failure = failure or error
    if failure is not None:
        raise failure


def first_choice(reply: dict[str, Any], url: str) -> dict[str, Any]:
    """Return the first choice of a chat completion; raise OSError if the reply has none."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise OSError(f"{url}: the reply has no choices: {json.dumps(reply)[:MAX_SHOWN]}")
    choice: dict[str, Any] = choices[0]
    return choice


def image_uri(content: bytes) -> str:
    """Return an encoded image as a data: URI for a message. Raise OSError if it is no image."""
    with Image.open(io.BytesIO(content)) as image:
        kind = Image.MIME.get(image.format or "", IMAGE_KIND)
    return data_uri(content, kind)
