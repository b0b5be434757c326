"""The one way in which a request reads an image: a data: URI, an http(s) address, or a local file."""

import base64
import ssl
import threading
import urllib.parse

from ...model.download_qwen import scheme_of
from ..conversation import SentImage
from .decode import decode
from .fetch import Connect, Network, Resolve, connect_to, download, resolve_name
from .local_files import path_of, read_file
from .policy import MediaError, MediaPolicy


class MediaReader:
    """Reads the images that requests name, as far as a policy allows.

    `read` blocks, so call it in a bounded pool of threads. `resolve` and `connect` stand for the network in tests.
    """

    def __init__(self, policy: MediaPolicy, *, resolve: Resolve = resolve_name, connect: Connect = connect_to) -> None:
        self.policy = policy
        self._network = Network(resolve, connect, ssl.create_default_context())
        self._decoders = threading.BoundedSemaphore(policy.num_decoders)

    def read(self, source: str, *, where: str, side: int | None = None) -> SentImage:
        """Return the image that `source` names. `where` is the part of the request, such as messages[0].content[1].

        side: if given, the image is squashed to side x side pixels, so that a large one takes memory for a moment only.
        Raise MediaError if the policy does not allow it, or if it cannot be read.
        """
        policy = self.policy
        try:
            content = self._content(source)
            with self._decoders:
                image = decode(content, max_pixels=policy.max_pixels, max_side=policy.max_side)
                return image if side is None else image.squashed(side)
        except MediaError as error:
            raise MediaError(error.reason, error.value, where=where) from None

    def _content(self, source: str) -> bytes:
        """Return the bytes that `source` names, which are not an image yet."""
        policy, scheme = self.policy, scheme_of(source)
        if scheme == "data":
            return data_uri_bytes(source, policy.max_bytes)
        if scheme in ("http", "https"):
            if policy.media_urls == "off":
                raise MediaError("urls_off")
            return download(source, policy, self._network)
        if not source or scheme not in (None, "file"):
            raise MediaError("source")
        if policy.allowed_local_dir is None:
            raise MediaError("files_off")
        return read_file(path_of(source), policy.allowed_local_dir, policy.max_bytes)


def data_uri_bytes(uri: str, max_bytes: int) -> bytes:
    """Return the bytes in a base64 `data:` URI. Raise MediaError for another encoding or too many bytes."""
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise MediaError("source")
    # Base64 takes four characters for three bytes. The rest is room for line breaks and percent signs.
    if len(payload) > max_bytes * 3 // 2 + 4:
        raise MediaError("bytes", max_bytes)
    try:
        content = base64.b64decode("".join(urllib.parse.unquote(payload).split()), validate=True)
    except ValueError:
        raise MediaError("damaged") from None
    if len(content) > max_bytes:
        raise MediaError("bytes", max_bytes)
    return content
