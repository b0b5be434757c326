"""The one way to an image of a request: every kind of source, and messages that tell nothing."""

import base64
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.images import encoded, noise
from helpers.media_server import PUBLIC

from qwen_vl.serving.media import REASONS, MediaError, MediaPolicy, MediaReader
from qwen_vl.serving.media import reader as module

WHERE = "messages[0].content[1]"


@pytest.fixture
def read(web, tmp_path):
    """Return `read(source, **policy)` over a made-up web and, with `local=True`, a folder with one image."""
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "text.txt").write_text("words")

    def call(source, *, local=False, **policy):
        policy = MediaPolicy(**{"seconds": 3.0, "allowed_local_dir": tmp_path if local else None, **policy})
        return MediaReader(policy, resolve=web.resolve, connect=web.connect).read(source, where=WHERE)

    return call


def data_uri(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_every_kind_of_source_gives_the_same_image(read, tmp_path):
    uri = data_uri(encoded())
    wrapped = re.sub("(.{60})", r"\1\r\n", uri)
    sources = [uri, wrapped, uri.replace("+", "%2B").replace("=", "%3D"), uri.replace("data:", "DATA:")]
    sources += [data_uri(encoded(), "text/html;charset=utf-8"), data_uri(encoded(), ""), data_uri(encoded(kind="BMP"))]
    sources += ["http://images.example/good.png", "a.png", f"{tmp_path}/a.png", f"file://{tmp_path}/a.png"]
    images = [read(source, local=True) for source in sources]
    assert len({image.digest for image in images}) == 1 and images[0].image.mode == "RGB"
    assert all(np.array_equal(np.asarray(sent.image), np.asarray(images[0].image)) for sent in images)


def refused():
    """Return (reason, source, options of the policy) of sources that give no image."""
    small, large = encoded(), encoded(noise(200, 200), "BMP")
    many = [
        ("source", "", {}),
        ("source", "data:image/png,abc", {}),
        ("source", "data:;base64", {}),
        ("source", "data:image/svg+xml;utf8,<svg/>", {}),
        ("source", "ftp://images.example/a.png", {}),
        ("source", "gopher://127.0.0.1/", {}),
        ("source", "s3://bucket/a.png", {"local": True}),
        ("damaged", "data:image/png;base64,@@@@", {}),
        ("damaged", "data:image/png;base64,AAAAA", {}),
        ("damaged", "data:image/png;base64,\u00e9\u00e9", {}),
        ("damaged", data_uri(small[:-30]), {}),
        ("format", "data:image/png;base64,", {}),
        ("format", data_uri(b"<svg/>", "image/png"), {}),
        ("format", data_uri(b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/png"), {}),
        ("format", "http://images.example/page", {}),
        ("format", "text.txt", {"local": True}),
        ("bytes", data_uri(large), {"max_bytes": len(large) - 1}),
        ("bytes", "data:image/png;base64," + "A" * 10_000_000, {"max_bytes": 1000}),
        ("bytes", "data:image/png;base64," + " " * 10_000_000, {"max_bytes": 1000}),
        ("bytes", "http://images.example/good.png", {"max_bytes": len(small) - 1}),
        ("bytes", "a.png", {"max_bytes": len(small) - 1, "local": True}),
        ("pixels", data_uri(small), {"max_pixels": 23}),
        ("side", data_uri(small), {"max_side": 5}),
        ("files_off", "a.png", {}),
        ("files_off", "/etc/passwd", {}),
        ("files_off", "file:///etc/passwd", {}),
        ("files_off", "just words", {}),
        ("file", "/etc/passwd", {"local": True}),
        ("file", "file:///etc/passwd", {"local": True}),
        ("file", "../a.png", {"local": True}),
        ("urls_off", "http://images.example/good.png", {"media_urls": "off"}),
        ("urls_off", "HTTPS://images.example/good.png", {"media_urls": "off"}),
        ("domain", "http://images.example/good.png", {"allowed_domains": ("other.example",)}),
        ("url", "http://ok\\@127.0.0.1/", {}),
        ("url", "http://user:word@images.example/", {}),
        ("port", "http://images.example:22/", {}),
        ("address", "http://127.0.0.1/good.png", {}),
        ("address", "http://unknown.example/good.png", {}),
        ("address", "http://0x7f.1/good.png", {}),
        ("redirects", "http://images.example/loop", {}),
        ("status", "http://images.example/404", {}),
        ("unreachable", "http://images.example/hangs-up", {}),
        ("timeout", "http://images.example/silent", {"seconds": 0.2}),
    ]
    assert {reason for reason, _, _ in many} == set(REASONS)
    return many


@pytest.mark.parametrize("reason, source, policy", refused())
def test_a_refusal_tells_nothing(read, web, tmp_path, reason, source, policy):
    """Check that a message names the part, and no path, address, object or word of a library."""
    with pytest.raises(MediaError) as caught:
        read(source, **policy)
    error = caught.value
    assert (error.reason, error.where) == (reason, WHERE)
    assert re.fullmatch(r"messages\[0\]\.content\[1\]: [a-z][A-Za-z0-9 ,.:;'()*/_-]+", str(error)), str(error)
    secrets = [str(tmp_path), PUBLIC, "127.0.0.1", "passwd", "example", "0x", "PIL", "Errno", "object", "text.txt"]
    assert not [secret for secret in secrets if secret in str(error)]
    assert error.__cause__ is None and error.__suppress_context__


def test_a_slow_request_stops_no_other(read):
    """Check that downloads that wait do not keep others from being read."""
    with ThreadPoolExecutor(9) as pool:
        slow = [pool.submit(read, "http://images.example/drip", seconds=1.0) for _ in range(8)]
        start = time.monotonic()
        assert pool.submit(read, data_uri(encoded())).result().image.size == (6, 4)
        assert time.monotonic() - start < 0.8
        assert {type(future.exception()) for future in slow} == {MediaError}


def test_few_images_are_decoded_at_once(monkeypatch):
    reader, lock, busy = MediaReader(MediaPolicy(num_decoders=2)), threading.Lock(), []
    most, decode = [], module.decode

    def slow(content, **limits):
        with lock:
            busy.append(1)
            most.append(len(busy))
        time.sleep(0.02)
        with lock:
            busy.pop()
        return decode(content, **limits)

    monkeypatch.setattr(module, "decode", slow)
    sources = [data_uri(encoded()), data_uri(b"no image")] * 8
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(reader.read, source, where=WHERE) for source in sources]
        errors = [type(result.exception()) for result in results]
    assert errors == [type(None), MediaError] * 8 and max(most) == 2
