"""Images from files, memory and data URIs: every kind of reference, and one clear error for each problem."""

import base64
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import encoded, noise
from PIL import Image

from qwen_vl.model.download_qwen import ImageError
from qwen_vl.model.image_loading_qwen import find_image, is_local, read_image
from qwen_vl.model.image_processing_qwen import QWenImageProcessor, pixels

pytestmark = pytest.mark.filterwarnings("error")


def png_header(width, height):
    """Return a small PNG whose header announces a size that its pixels do not have: a decompression bomb."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


# ---- where an image comes from ----


def test_local_images_are_looked_for_in_order(tmp_path, monkeypatch):
    for folder, color in (("first", (1, 1, 1)), ("second", (2, 2, 2)), ("here", (3, 3, 3))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (2, 2), color).save(tmp_path / folder / "图 1.png")
    monkeypatch.chdir(tmp_path / "here")
    dirs = [tmp_path / "none", tmp_path / "first", str(tmp_path / "second")]

    def shade(reference, search_dirs=()):
        return read_image(reference, search_dirs=search_dirs).getpixel((0, 0))[0]

    assert shade("图 1.png", dirs) == 1
    assert shade("图 1.png", dirs[2:]) == 2
    assert shade("图 1.png") == shade(Path("图 1.png")) == shade("图 1.png", dirs[:1]) == 3
    assert shade(str(tmp_path / "second" / "图 1.png"), dirs) == 2
    assert find_image("图 1.png", dirs) == str(tmp_path / "first" / "图 1.png")
    assert find_image("absent.png", dirs) is None
    assert [is_local(name) for name in ("a b.png", "C:\\a.png", "HTTPS://x/y", "data:,", "file:///a")] == (
        [True, True, False, False, False]
    )


def test_in_memory_images_lose_alpha_and_are_left_alone():
    source = Image.new("P", (3, 2))
    source.putpalette([9, 8, 7])
    source.info["transparency"] = b"\0"
    image = read_image(source)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (9, 8, 7)
    assert source.info["transparency"] == b"\0"


# ---- gray of more than 8 bits ----

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def tiff(values, size, bits, sample_format):
    """Return the bytes of a gray TIFF file of one strip. sample_format: 1 unsigned, 2 signed, 3 float, None absent."""
    data, (width, height) = values.tobytes(), size
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data))] + ([(339, sample_format)] if sample_format else [])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def saved(values, kind):
    """Return the bytes of an image file of an array."""
    return encoded(Image.fromarray(values), kind)


def big_endian(mode):
    """Return an image in memory whose 16-bit levels have the byte order of a mode."""
    return Image.frombytes(mode, (16, 16), (GRAY.astype(np.uint16) * 257).astype("<u2" if mode[-1] == "L" else ">u2"))


@pytest.mark.parametrize(
    ("image", "scaled"),
    [
        (saved(GRAY * np.uint16(257), "PNG"), "16-bit"),
        (saved(GRAY * np.uint16(257), "TIFF"), "16-bit"),
        (b"P5 16 16 65535\n" + (GRAY.astype(">u2") * 257).tobytes(), "16-bit"),
        (Image.fromarray(GRAY * np.uint16(257)), "16-bit"),
        (big_endian("I;16B"), "16-bit"),
        (big_endian("I;16L"), "16-bit"),
        (saved(GRAY.astype(np.int32) * 1000, "TIFF"), "32-bit gray: 0 .. 255000"),
        (saved(GRAY.astype(np.int32) * 257 - 9999, "TIFF"), "32-bit gray: -9999 .. 55536"),
        (tiff(GRAY.astype("<u4") * 16843009, (16, 16), 32, 1), "32-bit gray: 0 .. 4.29497e+09"),
        (tiff(GRAY.astype("<u4") * 16843009, (16, 16), 32, None), "32-bit gray: 0 .. 4.29497e+09"),
        (tiff(GRAY.astype("<i2") * 128, (16, 16), 16, 2), "32-bit gray: 0 .. 32640"),
        (saved(GRAY.astype(np.float32) / 255, "TIFF"), "float gray: 0 .. 1"),
        (saved(GRAY.astype(np.float32) / 255 * 2 - 1, "TIFF"), "float gray: -1 .. 1"),
        (saved(GRAY.astype(np.float32) / 255 * 1.2, "TIFF"), "float gray: 0 .. 1.2"),
        (saved(GRAY.astype(np.float32) * 1e36, "TIFF"), "float gray: 0 .. 2.55e+38"),
        (saved(GRAY.astype(np.float32), "TIFF"), None),
        (saved(GRAY.astype(np.int32), "TIFF"), None),
        (Image.fromarray(GRAY).convert("I"), None),
        (saved(GRAY, "PNG"), None),
    ],
    ids=range(19),
)
def test_gray_of_more_than_8_bits_is_scaled(image, scaled):
    """Check a difference: the original clips it at 255, so it becomes white, or black if it is float."""
    if isinstance(image, bytes):
        image = "data:image/x;base64," + base64.b64encode(image).decode()
    seen = read_image(image)
    assert seen.mode == "RGB" and np.array_equal(np.asarray(seen), np.repeat(GRAY[..., None], 3, axis=2))
    assert (scaled is None) == ("scaled" not in seen.info)
    assert scaled is None or seen.info["scaled"].startswith(scaled)
    if isinstance(image, Image.Image):
        assert torch.equal(pixels(image, 8), pixels(Image.fromarray(GRAY), 8)) and "scaled" not in image.info
        assert torch.equal(QWenImageProcessor(8)(image).pixel_values[0], pixels(seen, 8))


def test_gray_without_a_usable_range():
    def levels(*values):
        seen = read_image(Image.fromarray(np.array([values], dtype=np.float32)))
        return np.asarray(seen)[0, :, 0].tolist(), seen.info["scaled"]

    nan, inf = float("nan"), float("inf")
    assert levels(nan, 0, 0.5, 1)[0] == [0, 0, 128, 255]
    assert levels(-inf, nan, 0, 300, 600, inf)[0] == [0, 0, 0, 128, 255, 255]
    assert levels(nan, 60, 255)[0] == [0, 60, 255]
    assert levels(nan, nan)[0] == levels(0, 0)[0] == levels(-5, -5)[0] == [0, 0]
    dark = read_image(Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)))  # 12 bits in 16
    assert dark.getpixel((0, 0)) == (16, 16, 16) and "nothing in it is above 4095 of 65535" in dark.info["scaled"]
    packed = np.frombuffer(bytes([0xFF, 0xF0, 0x80]), dtype=np.uint8)  # two levels of 12 bits
    seen = read_image("data:;base64," + base64.b64encode(tiff(packed, (2, 1), 12, 1)).decode())
    assert np.asarray(seen)[0, :, 0].tolist() == [255, 8] and seen.info["scaled"].startswith("12-bit")


def test_color_of_16_bits_keeps_its_high_byte(tmp_path):
    """Check that 16-bit color is read as Pillow does, which never clips it."""
    color = np.stack([GRAY, GRAY[::-1], GRAY.T], axis=2)
    wide = b"P6 16 16 65535\n" + (color.astype(">u2") * 257).tobytes()
    seen = read_image("data:;base64," + base64.b64encode(wide).decode())
    assert np.array_equal(np.asarray(seen), color) and "scaled" not in seen.info


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGBa"])
def test_other_modes_are_converted_as_by_pillow(mode):
    image = noise(9, 7)
    for step in {"PA": "P", "RGBa": "RGBA"}.get(mode, ""), mode:
        image = image.convert(step) if step else image
    assert read_image(image).tobytes() == image.convert("RGB").tobytes()


def test_an_array_is_no_image():
    with pytest.raises(ImageError, match=r"use a path, .* \(Image.fromarray of an array\)") as caught:
        QWenImageProcessor(8)(np.zeros((99, 99, 3)))
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


# ---- more places ----


def test_data_uris():
    content = base64.b64encode(encoded()).decode()
    for uri in (f"data:image/png;base64,{content}", f"DATA:;base64,{content[:20]}\n{content[20:].replace('+', '%2B')}"):
        assert read_image(uri).size == (6, 4)
    for uri, problem in (
        ("data:image/png;base64,@@@@", "broken base64"),
        ("data:image/png,abc", "not base64"),
        ("data:image/png;base64,", "empty"),
        (f"data:text/plain;base64,{base64.b64encode(b'hello').decode()}", "not an image"),
        (f"data:image/png;base64,{'A' * 4000}", "more than 2000 bytes"),
    ):
        with pytest.raises(ImageError, match=problem) as caught:
            read_image(uri, max_bytes=2000)
        assert len(str(caught.value)) < 400


# ---- what can be wrong with a file ----


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("text.jpg", b"I am not an image, whatever my name says. " * 9, "not an image that Pillow reads"),
        ("empty.png", b"", "empty"),
        ("cut.jpg", encoded(noise(80, 80), "JPEG")[:1500], "damaged or cut short"),
        ("cut.png", encoded(noise(80, 80))[:800], "damaged or cut short"),
        ("cut.webp", encoded(noise(80, 80), "WEBP")[:1500], "damaged|decoded|not an image"),
        ("bomb.png", png_header(60000, 60000), "60000 x 60000 pixels, the limit is 89478485"),
        ("big.png", png_header(12000, 12000), "12000 x 12000 pixels"),  # where Pillow itself would only warn
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not an image"),
    ],
)
def test_bad_files(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=problem) as caught:
        read_image(name, search_dirs=[tmp_path])
    assert str(path) in str(caught.value)


def test_missing_files_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError) as caught:
        read_image("a.png", search_dirs=[tmp_path / "x", "y"])
    for place in ("x", "y", "."):
        assert repr(os.path.abspath(os.path.join(place, "a.png"))) in str(caught.value)
    for reference, problem in (("folder", "is a folder"), ("a\0b", "zero byte"), ("n" * 5000, "no such file")):
        with pytest.raises(ImageError, match=problem) as caught:
            read_image(reference)
        assert len(str(caught.value)) < 600
    for reference in ("", None, 7, b"a.png"):
        with pytest.raises(ImageError, match="use a path"):
            read_image(reference)


def test_the_pixel_limit_is_the_callers_and_leaves_pillow_as_it_is(tmp_path):
    noise(50, 40).save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert read_image(str(tmp_path / "a.png"), max_pixels=2000).size == (50, 40)
    with pytest.raises(ImageError, match="50 x 40 pixels, the limit is 1999"):
        read_image(str(tmp_path / "a.png"), max_pixels=1999)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_no_file_stays_open(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(encoded(noise(80, 80), "JPEG")[:1500])
    (tmp_path / "text.jpg").write_text("text")
    noise(9, 9).save(tmp_path / "anim.gif", save_all=True, append_images=[noise(9, 9)])
    before, kept = len(os.listdir("/proc/self/fd")), []
    for name in ("cut.jpg", "text.jpg", "anim.gif") * 5:
        try:
            kept.append(read_image(name, search_dirs=[tmp_path]))
        except ImageError as error:
            kept.append(error)
    assert len(os.listdir("/proc/self/fd")) == before
