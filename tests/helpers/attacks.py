"""What attackers send: tables of cases, and checks that a server refuses them and goes on."""

import base64
import contextlib
import json
import struct
import threading
import time
import zlib
from urllib.parse import quote

from helpers.images import encoded, noise
from helpers.media_server import PUBLIC
from helpers.serving import RunningServer, refused, send
from PIL import Image

from qwen_vl.serving.api.app import create_app
from qwen_vl.serving.api.server import Server, address_of, listen
from qwen_vl.serving.api.settings import ServerSettings
from qwen_vl.serving.media import MediaError
from qwen_vl.serving.media.policy import TEXTS

CHAT = "/v1/chat/completions"
SECONDS = 0.5  # of a download, and of a body
SETTINGS = ServerSettings(max_body_bytes=2**22, body_seconds=SECONDS, header_seconds=SECONDS, stall_seconds=5)
POLICY = {"seconds": SECONDS, "max_bytes": 2_000_000, "max_pixels": 2**20}
WHERE = "messages[0].content[0]"
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
)


@contextlib.contextmanager
def serving(engine, settings, reader, **options):
    """Yield the RunningServer of `qwen-vl serve`, in a thread. options: those of `create_app`."""
    app = create_app(engine, settings, reader=reader, **options)
    server = Server(app, engine, settings)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.serve_on, args=(bound,))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            running = RunningServer(engine, app, address_of(bound), None)
            running.stop = server.stop
            yield running
        finally:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()


def asking(*parts, **fields):
    """Return the body of a short greedy request with one user message of parts; a string is the address of an image."""
    content = [{"type": "image_url", "image_url": {"url": part}} if isinstance(part, str) else part for part in parts]
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
        **fields,
    }


def words(text):
    return {"type": "text", "text": text}


def data_url(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def answers(server):
    """Check that a server answers."""
    status, _, content = send(server, CHAT, asking(words("Hello")))
    assert status == 200 and json.loads(content)["usage"]["completion_tokens"] == 1
    stats = server.engine.stats()
    assert stats.running == stats.waiting == stats.images_used == 0


def check_refused(server, source, reason):
    """Check that the image of a source is refused for a reason, in words that tell nothing, and that others go on."""
    answer = send(server, CHAT, asking(source, words("What is it?")))
    assert refused(answer) == (400, "invalid_image", WHERE), source
    message = json.loads(answer[2])["error"]["message"]
    assert message.startswith(f"{WHERE}: {TEXTS[reason].partition('{')[0]}"), (source, message)
    if "{" not in TEXTS[reason]:
        assert message == str(MediaError(reason, where=WHERE))
    answers(server)


def to(url):
    """Return an address of a public host that redirects."""
    return f"http://images.example/to?url={quote(url, safe='')}"


def no_private_host(host, web):
    """Check that no connection went to a private address, and that no image was asked for."""
    assert {address for address, _ in web.connected} <= {PUBLIC, "1.1.1.1"}
    assert not [path for _, path, _ in host.requests if path.startswith("/good")]


ADDRESSES = {  # as the host of an address, and as what a name resolves to
    "loopback": ["127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0", "[::]"],
    "private": ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "[fd00::1]", "[fd00:ec2::254]"],
    "link-local": ["169.254.169.254", "169.254.170.2", "[fe80::1]", "[fec0::1]"],
    "IPv4-mapped": ["[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]", "[::127.0.0.1]"],
    "NAT64 and tunnels": ["[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::1]", "[2002:7f00:1::]"],
    "multicast and reserved": ["224.0.0.1", "240.0.0.1", "192.0.0.192", "192.0.2.1", "[ff02::1]", "[2001:db8::1]"],
}
NUMBERS = ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "0", "１２７.０.０.１", "127.0.0.1."]
MALFORMED = ["http://user:word@images.example/good.png", "http://user@images.example/good.png", "http://[::1/good.png"]
MALFORMED += ["http://images.example\\@127.0.0.1/good.png", "http://images.example/a b", "http://\t127.0.0.1/good.png"]
MALFORMED += ["http://images.example/good.png\r\nHost: inside", "http://%6c%6fcalhost/good.png", "http:///good.png"]
PORTS = ["http://images.example:22/good.png", "http://1.1.1.1:8080/good.png", "https://images.example:6379/good.png"]
SCHEMES = [
    "ftp://images.example/a",
    "gopher://127.0.0.1/a",
    "ssh://127.0.0.1/a",
    "data:image/png,plain",
    "data:;base64",
]
HOSTS = [one for group in ADDRESSES.values() for one in group]
EVERY_KIND = [group[0] for group in ADDRESSES.values()] + NUMBERS[:3]


BODIES = {
    "bytes": ["endless", "announced"],
    "unreachable": ["liar", "hangs-up", "nonsense", "endless-headers", "endless-line"],
    "timeout": ["silent", "stops", "drip", "drip-headers", "endless-continue"],
    "status": ["404", "500", "204"],
    "redirects": ["loop", "count?n=6"],
    "format": ["page"],
}


PATHS = ["missing.png", "../images-secret/s.png", "{}/../images-secret/s.png", "{}-secret/s.png", "/etc/passwd"]
PATHS += ["outside", "folder/s.png", "pipe", ".", "/dev/zero", "/proc/self/environ", "a.png\0", "file://{}/outside"]
PATHS += ["file:///etc/passwd", "file://{}/%2e%2e/images-secret/s.png", "~/a.png", "a" * 5000]


def chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(width, height):
    """Return a small PNG whose header has any size."""
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


def cut(kind):
    content = encoded(noise(30, 20), kind)
    return content[: len(content) * 2 // 3]


BOMBS = {
    "PNG": (png(50_000, 50_000), "pixels"),
    "PNG, wide": (png(2**31 - 1, 1), "side"),
    "JPEG": (encoded(Image.new("L", (8, 8)), "JPEG").replace(b"\0\x08\0\x08", b"\xff\xff\xff\xff"), "pixels"),
    "BMP": (encoded(kind="BMP").replace(struct.pack("<LL", 6, 4), struct.pack("<LL", 60_000, 60_000)), "pixels"),
    "GIF": (encoded(kind="GIF").replace(struct.pack("<HH", 6, 4), b"\xff\xff\xff\xff"), "pixels"),
    "too many bytes": (encoded(noise(2, 2), "BMP") + b"\0" * 2_000_000, "bytes"),
    **{f"cut {kind}": (cut(kind), "damaged") for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")},
}
OTHERS = {
    "nothing": b"",
    "text": b"just text",
    "page": b"<html><body>please log in</body></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "script": b"#!/bin/sh\nexit\n",
    "fits": b"SIMPLE  =                    T",
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 40,
    "photoshop": b"8BPS\0\1" + b"\0" * 40,
    "sound": b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40,
    "big tiff": b"II+\0\x08\0\0\0" + b"\0" * 40,
    "film": b"\0\0\0\x18ftypmp42" + b"\0" * 40,
    "heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
    "pdf": b"%PDF-1.7\n%%EOF\n",
    "zip": b"PK\3\4" + b"\0" * 40,
    "gzip": zlib.compress(b"\0" * 1000, wbits=31),
    "program": b"\x7fELF" + b"\0" * 60,
}


def user(content):
    return {"role": "user", "content": content}


DEEP = b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
COSTS = {
    "10,000 parts": (asking(*[words("a")] * 10_000), "limit_exceeded", "messages[0].content"),
    "10,000 parts in many messages": (asking(messages=[user([words("a")] * 100)] * 100), "limit_exceeded", "messages"),
    "10,000 messages": (asking(messages=[user("a")] * 10_000), "limit_exceeded", "messages"),
    "10,000 images": (asking(*["http://images.example/good.png"] * 10_000), "limit_exceeded", "messages[0].content"),
    "17 images": (asking(*["http://images.example/good.png"] * 17), "limit_exceeded", "messages"),
    "a long text": (asking(words("a" * 300_000)), "limit_exceeded", "messages"),
    "n, huge": (asking(words("a"), n=10**9), None, "n"),
    "n, of many digits": (asking(words("a"), n=10**30), None, "n"),
    "n, negative": (asking(words("a"), n=-1), None, "n"),
    "n, true": (asking(words("a"), n=True), None, "n"),
    "max_tokens, huge": (asking(words("a"), max_tokens=10**18), None, "max_tokens"),
    "max_tokens beyond the context": (asking(words("a"), max_tokens=10**6), "context_length_exceeded", "messages"),
    "1,000 stop words": (asking(words("a"), stop=["b"] * 1000), "limit_exceeded", "stop"),
    "a long stop word": (asking(words("a"), stop="b" * 10_000), "limit_exceeded", "stop"),
    "temperature, infinite": (b'{"model": "tiny", "messages": [], "temperature": Infinity}', "invalid_json", None),
    "temperature, 1e999": (b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',)
    + (None, "temperature"),
    "a number of 100,000 digits": (b'{"model": "tiny", "n": ' + b"9" * 100_000 + b"}", "invalid_json", None),
    "invalid UTF-8": (
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        "invalid_json",
        None,
    ),
    "UTF-16": ('{"model": "tiny"}'.encode("utf-16"), "invalid_json", None),
    "half a surrogate pair": (b'{"model": "\\ud800"}', None, "model"),
    "nested deeply": (DEEP, "invalid_json", None),
    "no JSON": (b"model=tiny", "invalid_json", None),
    "nothing": (b"", "invalid_json", None),
}
