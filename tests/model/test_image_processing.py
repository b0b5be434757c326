"""Pictures: bit-exact numbers, every way to name one, and one clear error for everything that can go wrong."""

import base64
import contextlib
import hashlib
import io
import os
import socket
import struct
import threading
import time
import warnings
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_vl.model.image_processing_qwen import (
    CLIP_MEAN,
    CLIP_STD,
    PictureError,
    QWenImageProcessor,
    find_picture,
    is_local,
    open_picture,
    pixels,
)

pytestmark = pytest.mark.filterwarnings("error")


def encoded(picture=None, kind="PNG"):
    """The bytes of a picture file."""
    stream = io.BytesIO()
    (picture or Image.new("RGB", (6, 4), (200, 30, 60))).save(stream, kind)
    return stream.getvalue()


def noise(width, height):
    """A fixed RGB picture in which a change of any rounding shows."""
    levels = (np.arange(width * height * 3, dtype=np.int64) ** 2 % 251).astype(np.uint8)
    return Image.fromarray(levels.reshape(height, width, 3))


def png_header(width, height):
    """A small PNG that announces a size and has no matching pixels: a decompression bomb."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


# ---- the numbers ----


def test_pixels_equal_the_reference_bit_for_bit(golden, in_golden_dir):
    for name, expected in golden("image_preprocess.json").items():
        values = pixels(open_picture(f"images/{name}"), 448)
        assert values.dtype == torch.float32 and values.shape == (3, 448, 448)
        assert values.flatten()[:8].tolist() == expected["first8"], name
        assert hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest() == expected["float_sha256"], name


def test_pixels_equal_the_recorded_bytes_with_difference_zero(golden, in_golden_dir):
    if not Path("image_preprocess_u8.npz").is_file():
        pytest.skip("only the full set of reference outputs holds the resized pictures")
    levels = golden("image_preprocess_u8.npz")
    for name in levels.files:
        u8 = torch.from_numpy(levels[name])
        u8 = u8.permute(2, 0, 1) if u8.shape[-1] == 3 else u8
        expected = (u8.float() / 255 - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
        assert (pixels(open_picture(f"images/{name}"), 448) - expected).abs().max() == 0.0, name


def test_the_order_of_the_resize_passes_does_not_depend_on_pillow():
    """Recorded with Pillow 13's own resize, around the sizes where it begins to shrink the height first."""
    recorded = {
        (20, 24): "b22bf210fa0cc4d5",
        (20, 25): "1d4184abbd8c3e50",
        (9, 17): "f6cbb4fc22666e59",
        (40, 64): "2dcd5e7448eb81dd",
        (40, 65): "e3e3f67aaaed86c2",
        (16, 100): "0f123427bfefba41",
    }
    std, mean = (torch.tensor(values)[:, None, None] for values in (CLIP_STD, CLIP_MEAN))
    for size, expected in recorded.items():
        levels = ((pixels(noise(*size), 16) * std + mean) * 255).round().to(torch.uint8)
        digest = hashlib.sha256(levels.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()
        assert digest.startswith(expected), size


# ---- where a picture comes from ----


def test_local_pictures_are_looked_for_in_order(tmp_path, monkeypatch):
    for folder, colour in (("first", (1, 1, 1)), ("second", (2, 2, 2)), ("here", (3, 3, 3))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (2, 2), colour).save(tmp_path / folder / "图 1.png")
    monkeypatch.chdir(tmp_path / "here")
    dirs = [tmp_path / "none", tmp_path / "first", str(tmp_path / "second")]

    def shade(reference, search_dirs=()):
        return open_picture(reference, search_dirs=search_dirs).getpixel((0, 0))[0]

    assert shade("图 1.png", dirs) == 1
    assert shade("图 1.png", dirs[2:]) == 2
    assert shade("图 1.png") == shade(Path("图 1.png")) == shade("图 1.png", dirs[:1]) == 3
    assert shade(str(tmp_path / "second" / "图 1.png"), dirs) == 2
    assert find_picture("图 1.png", dirs) == str(tmp_path / "first" / "图 1.png")
    assert find_picture("absent.png", dirs) is None
    assert [is_local(name) for name in ("a b.png", "C:\\a.png", "HTTPS://x/y", "data:,", "file:///a")] == (
        [True, True, False, False, False]
    )


def test_in_memory_pictures_lose_alpha_and_are_left_alone():
    source = Image.new("P", (3, 2))
    source.putpalette([9, 8, 7])
    source.info["transparency"] = b"\0"
    picture = open_picture(source)
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (9, 8, 7)
    assert source.info["transparency"] == b"\0"


def test_data_uris():
    content = base64.b64encode(encoded()).decode()
    for uri in (f"data:image/png;base64,{content}", f"DATA:;base64,{content[:20]}\n{content[20:].replace('+', '%2B')}"):
        assert open_picture(uri).size == (6, 4)
    for uri, problem in (
        ("data:image/png;base64,@@@@", "broken base64"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,", "empty"),
        (f"data:text/plain;base64,{base64.b64encode(b'hello').decode()}", "not a picture"),
        (f"data:image/png;base64,{'A' * 4000}", "more than 2000 bytes"),
    ):
        with pytest.raises(PictureError, match=problem) as caught:
            open_picture(uri, max_bytes=2000)
        assert len(str(caught.value)) < 400


# ---- what can be wrong with a file ----


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("text.jpg", b"I am not a picture, whatever my name says. " * 9, "not a picture that Pillow reads"),
        ("empty.png", b"", "empty"),
        ("cut.jpg", encoded(noise(80, 80), "JPEG")[:1500], "damaged or cut short"),
        ("cut.png", encoded(noise(80, 80))[:800], "damaged or cut short"),
        ("cut.webp", encoded(noise(80, 80), "WEBP")[:1500], "damaged|decoded|not a picture"),
        ("bomb.png", png_header(60000, 60000), "60000 x 60000 pixels, the limit is 89478485"),
        ("big.png", png_header(12000, 12000), "12000 x 12000 pixels"),  # where Pillow itself would only warn
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not a picture"),
    ],
)
def test_bad_files(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PictureError, match=problem) as caught:
        open_picture(name, search_dirs=[tmp_path])
    assert str(path) in str(caught.value)


def test_missing_files_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(PictureError) as caught:
        open_picture("a.png", search_dirs=[tmp_path / "x", "y"])
    for place in ("x", "y", "."):
        assert repr(os.path.abspath(os.path.join(place, "a.png"))) in str(caught.value)
    for reference, problem in (("folder", "is a folder"), ("a\0b", "zero byte"), ("n" * 5000, "no such file")):
        with pytest.raises(PictureError, match=problem) as caught:
            open_picture(reference)
        assert len(str(caught.value)) < 600
    for reference in ("", None, 7, b"a.png"):
        with pytest.raises(PictureError, match="use a path"):
            open_picture(reference)


def test_the_pixel_limit_is_the_callers_and_leaves_pillow_as_it_is(tmp_path):
    noise(50, 40).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert open_picture(str(tmp_path / "a.png"), max_pixels=2000).size == (50, 40)
    with pytest.raises(PictureError, match="50 x 40 pixels, the limit is 1999"):
        open_picture(str(tmp_path / "a.png"), max_pixels=1999)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_no_file_stays_open(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(encoded(noise(80, 80), "JPEG")[:1500])
    (tmp_path / "text.jpg").write_text("text")
    noise(9, 9).save(tmp_path / "anim.gif", save_all=True, append_images=[noise(9, 9)])
    before, kept = len(os.listdir("/proc/self/fd")), []
    for name in ("cut.jpg", "text.jpg", "anim.gif") * 5:
        try:
            kept.append(open_picture(name, search_dirs=[tmp_path]))
        except PictureError as error:
            kept.append(error)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- the network ----


class Handler(BaseHTTPRequestHandler):
    """One path for each way in which a server behaves; `/NUMBER` answers with that status."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.strip("/").split("?")[0]
        if name.isdigit():
            return self.reply(b"no", status=int(name))
        return getattr(self, name.replace("-", "_"))()

    def reply(self, body, status=200, kind="image/png", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client may have had enough
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

    def slow(self):
        time.sleep(1.0)

    def drip(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(60):
                self.wfile.write(b"\x89")
                time.sleep(0.03)


@pytest.fixture(scope="module")
def server():
    """Address of a server on this machine."""
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
def test_pictures_from_the_network(server, path):
    assert open_picture(f"{server}/{path}").getpixel((0, 0)) == (200, 30, 60)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("404", "answered 404 Not Found"),
        ("503", "answered 503"),
        ("page", "calls it text/html.*not a picture"),
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
    with pytest.raises(PictureError, match=problem) as caught:
        open_picture(f"{server}/{path}", timeout=0.3 if "within" in problem else 10, max_bytes=100_000)
    assert f"{server}/{path}" in str(caught.value)
    assert time.monotonic() - start < 5


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
            with pytest.raises(PictureError, match=problem):
                open_picture(address, timeout=2)


# ---- the image processor ----


def test_the_image_processor_takes_one_or_many_in_order(tmp_path):
    red, blue = Image.new("RGB", (5, 9), "red"), Image.new("RGBA", (9, 5), "blue")
    red.save(tmp_path / "red.png")
    processor = QWenImageProcessor(image_size=8)
    one = processor(red).pixel_values
    assert one.shape == (1, 3, 8, 8) and one.dtype == torch.float32
    many = processor([[blue], ["red.png", (blue,)]], search_dirs=[tmp_path], return_tensors="np").pixel_values
    assert isinstance(many, np.ndarray) and many.shape == (3, 3, 8, 8)
    assert np.array_equal(many[1], one[0].numpy()) and np.array_equal(many[0], many[2])
    with pytest.raises(ValueError, match="no picture given"):
        processor([])
    with pytest.raises(ValueError, match="image_size: 0"):
        QWenImageProcessor(image_size=0)


def test_the_image_processor_round_trips(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        QWenImageProcessor(image_size=56).save_pretrained(tmp_path)
        assert (tmp_path / "preprocessor_config.json").is_file() and (tmp_path / "image_processing_qwen.py").is_file()
        assert QWenImageProcessor.from_pretrained(tmp_path).image_size == 56
        assert QWenImageProcessor.from_pretrained(tmp_path, image_size=28).image_size == 28
