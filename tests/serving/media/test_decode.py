"""Decoding of images in requests: the formats, and files that are small but cost a lot."""

import io
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from helpers.attacks import OTHERS
from helpers.images import encoded, noise
from PIL import Image

from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.serving.media import MediaError
from qwen_vl.serving.media import decode as decode_module
from qwen_vl.serving.media.decode import MAX_PARTS, decode, tiff_tiles

Image.init()
READ_FORMATS = {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO"}  # the last is JPEG with more images behind
MODES = {"PALM": "P", "BLP": "P", "XBM": "1", "MSP": "1"}  # those that write no RGB
NOT_WRITTEN = {"BUFR", "GRIB", "HDF5", "WMF"}  # only with a library that is not there
WRITTEN = sorted(set(Image.SAVE) - NOT_WRITTEN)


def file_of(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(content, *, max_pixels=2**20, max_side=65_535):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged tags
        return decode(content, max_pixels=max_pixels, max_side=max_side)


def reason_of(content, **limits):
    """Return why a file is refused, after a check that this took little memory and time."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(MediaError) as caught:
        read(content, **limits)
    assert time.process_time() - start < 3
    assert tracemalloc.get_traced_memory()[1] < 8 * len(content) + 2**23
    tracemalloc.stop()
    return caught.value.reason


@pytest.mark.parametrize("name", WRITTEN)
def test_formats_that_pillow_writes(name):
    image = noise(40, 24).convert(MODES.get(name, "RGB"))
    content = file_of(image, name)
    if name not in READ_FORMATS:
        assert reason_of(content) == "format"
        return
    sent = read(content)
    expected = read_image(Image.open(io.BytesIO(content)))
    assert sent.image.mode == "RGB" and np.array_equal(np.asarray(sent.image), np.asarray(expected))


VARIANTS = [("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")]
VARIANTS += [("JPEG", mode, {"progressive": progressive}) for mode in ("L", "RGB", "CMYK") for progressive in (0, 1)]
VARIANTS += [("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)]
VARIANTS += [("GIF", mode, {}) for mode in ("1", "L", "P")] + [("BMP", mode, {}) for mode in ("1", "L", "P", "RGB")]
VARIANTS += [("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I", "F", "I;16")]
TIFF_KINDS = ("tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg")
VARIANTS += [("TIFF", "RGB", {"compression": kind}) for kind in TIFF_KINDS]
VARIANTS += [("TIFF", "1", {"compression": kind}) for kind in ("group3", "group4", "tiff_ccitt")]


@pytest.mark.parametrize("kind, mode, options", VARIANTS)
def test_variants_of_formats(kind, mode, options):
    """Check that the limits change no pixel of an image without tricks."""
    levels = noise(60, 44).convert("L" if mode in ("I;16", "I", "F") else "RGB")
    image = Image.fromarray(np.asarray(levels, np.uint16) * 257) if mode == "I;16" else levels.convert(mode)
    content = file_of(image, kind, **options)
    expected = read_image(Image.open(io.BytesIO(content)))
    assert np.array_equal(np.asarray(read(content).image), np.asarray(expected))


@pytest.mark.parametrize("compression", ["lzma", "zstd", "webp", "tiff_jpeg"])
def test_tiff_with_a_large_parser_inside(compression):
    content = file_of(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_lzw")
    number = {"lzma": 34925, "zstd": 50000, "webp": 50001, "tiff_jpeg": 6}[compression]
    assert reason_of(with_tag(content, 259, 3, 1, number)) == "format"


@pytest.mark.parametrize("name", OTHERS)
def test_other_files(name):
    assert reason_of(OTHERS[name]) == "format"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_that_is_cut_short(kind):
    """Check every length up to 100 bytes, and 30 beyond."""
    content = file_of(noise(30, 20), kind)
    lengths = [*range(1, 100), *np.linspace(100, len(content) * 0.95, 30).astype(int)]
    found = {reason_of(content[:length]) for length in lengths}
    assert found <= {"damaged", "format", "side", "pixels"} and "damaged" in found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_with_changed_bytes(kind):
    """Check that 300 random changes give an image or a MediaError, and no other error."""
    content, random = file_of(noise(30, 20), kind), np.random.default_rng(1)
    outcomes = set()
    for _ in range(300):
        changed = bytearray(content)
        for at in random.integers(0, min(len(content), 400), 3):
            changed[at] = random.integers(256)
        try:
            outcomes.add(read(bytes(changed)).image.mode)
        except MediaError as error:
            outcomes.add(error.reason)
    assert len(outcomes) >= 2 and outcomes <= {"RGB", "damaged", "format", "pixels", "side"}


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_tiny_images(kind, size):
    assert read(file_of(Image.new("RGB", size, (9, 9, 9)), kind)).image.size == size


def png(width, height, *, extra=b""):
    """Return a PNG whose header has any size, with pixels that compress well."""

    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


def with_tag(content, tag, kind, count, value):
    """Return a little-endian TIFF in which an entry of the first directory is changed, or put before the others."""
    (start,) = struct.unpack_from("<L", content, 4)
    (number,) = struct.unpack_from("<H", content, start)
    entries = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * number, 12)]
    entry = struct.pack("<HHLL", tag, kind, count, value)
    entries = sorted(
        [entry, *(old for old in entries if old[:2] != entry[:2])], key=lambda e: struct.unpack("<H", e[:2])
    )
    table = struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    return content[:4] + struct.pack("<L", len(content)) + content[8:] + table


def webp(kind, body):
    body += b"\0" * 30
    return b"RIFF" + struct.pack("<L", len(body) + 12) + b"WEBP" + kind + struct.pack("<L", len(body)) + body


def gif(frames, *, size=(4, 4), before=b""):
    content = file_of(Image.new("L", size), "GIF")
    start = content.index(b",", 13)
    frame = content[start:-1]
    return content[:6] + struct.pack("<HH", *size) + content[10:start] + before + frame * frames + b";"


TIFF = file_of(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_lzw")
BOMBS = {
    "PNG": (png(50_000, 50_000), "pixels"),
    "PNG, wide": (png(2**31 - 1, 1), "side"),
    "JPEG": (file_of(Image.new("L", (8, 8)), "JPEG").replace(b"\0\x08\0\x08", b"\xff\xff\xff\xff"), "pixels"),
    "BMP": (encoded(kind="BMP").replace(struct.pack("<LL", 6, 4), struct.pack("<LL", 60_000, 60_000)), "pixels"),
    "GIF, screen": (gif(1, size=(1, 1)).replace(b"GIF87a\1\0\1\0", b"GIF87a\xff\xff\xff\xff"), "pixels"),
    "GIF, frame": (gif(1).replace(b",\0\0\0\0\4\0\4\0", b",\0\0\0\0\xff\xff\xff\xff"), "pixels"),
    "WEBP, canvas": (webp(b"VP8X", b"\0" * 4 + b"\xff" * 6), "side"),
    "WEBP, lossy": (webp(b"VP8 ", b"\x10\0\0\x9d\1\x2a" + b"\xff\x3f\xff\x3f"), "pixels"),
    "WEBP, lossless": (webp(b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f"), "pixels"),
    "TIFF": (with_tag(with_tag(TIFF, 256, 4, 1, 60_000), 257, 4, 1, 60_000), "pixels"),
    "TIFF, tile": (with_tag(with_tag(TIFF, 322, 4, 1, 60_000), 323, 4, 1, 60_000), "pixels"),
    "TIFF, wide tile": (with_tag(with_tag(TIFF, 322, 4, 1, 2**31), 323, 4, 1, 1), "side"),
    "TIFF, odd tile": (with_tag(with_tag(TIFF, 322, 5, 1, 8), 323, 4, 1, 16), "damaged"),
    "TIFF, strips": (with_tag(TIFF, 273, 4, 2**31, 8), "damaged"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_size_beyond_the_limits(name):
    content, reason = BOMBS[name]
    assert len(content) < 20_000 and reason_of(content) == reason


def test_limits_of_the_policy():
    content = encoded(noise(40, 30))
    assert read(content, max_pixels=1200, max_side=40).image.size == (40, 30)
    assert reason_of(content, max_pixels=1199) == "pixels" and reason_of(content, max_side=39) == "side"


def exif_bomb(num_tags, size):
    """Return an EXIF block whose tags all name the same bytes: it is small, and num_tags x size when it is read."""
    tags = b"".join(struct.pack("<HHLL", 40_000 + i, 7, size, 8) for i in range(num_tags))
    return b"II*\0" + struct.pack("<L", 8 + size) + b"\0" * size + struct.pack("<H", num_tags) + tags + b"\0" * 4


def segment(code, data):
    return b"\xff" + bytes([code]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*, before=b"", between=b"", times=1):
    """Return a progressive JPEG with segments before its first scan, and scans repeated `times` times."""
    content = file_of(noise(64, 64), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:2] + before + content[2:last] + between + content[last:-2] * times + content[-2:]


def test_metadata_that_asks_for_gigabytes():
    """Check that EXIF of JPEG is not read, and that TIFF cannot read its bytes over and over."""
    plain = np.asarray(read(jpeg()).image)
    exif = exif_bomb(4000, 400_000)
    parts = [exif[start : start + 60_000] for start in range(0, len(exif), 60_000)]
    content = jpeg(before=b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts))
    tracemalloc.start()
    assert np.array_equal(np.asarray(read(content).image), plain)
    assert tracemalloc.get_traced_memory()[1] < 8 * len(content)
    tracemalloc.stop()
    assert reason_of(exif) == "damaged"


def test_scans_of_a_jpeg():
    assert read(jpeg(times=50)).image.size == (64, 64)
    hidden = segment(0x02, b"\xff\xda" * 300)  # libjpeg may look inside a marker that it does not know
    for content in (jpeg(times=3000), jpeg(between=hidden)):
        assert reason_of(content) == "damaged"
    behind = jpeg() + b"\xff\xda" * 3000  # such as a film behind the image
    assert read(behind).digest == read(jpeg()).digest == read(jpeg(between=segment(0xFE, b"\xff\xd9" * 9))).digest


def test_very_many_small_parts():
    """Check comments, chunks, segments and tiles: each costs some bytes, but far more time."""
    chunks = png(4, 4, extra=(b"\0\0\0\0prVt" + struct.pack(">L", zlib.crc32(b"prVt"))) * 300_000)
    comments = gif(1, before=b"\x21\xfe" + (b"\xff" + b"a" * 255) * 40_000 + b"\0")
    segments = jpeg(before=segment(0xFE, b"") * 1_000_000)
    junk = b"\xff\xd8\xff" + b"\0" * 3_000_000
    for content in (chunks, comments, segments, junk):
        assert reason_of(content) == "damaged"


@pytest.mark.parametrize("tag", [273, 324])
def test_very_many_parts_of_a_tiff(tag):
    """Check that their number is looked at first: Pillow makes some objects for each."""
    assert tiff_tiles(with_tag(TIFF, tag, 4, MAX_PARTS, 8)) == []
    with pytest.raises(MediaError, match="damaged"):
        tiff_tiles(with_tag(TIFF, tag, 4, MAX_PARTS + 1, 8))


def test_frames_are_not_counted():
    """Check that 200,000 frames cost what one costs."""
    start = time.process_time()
    assert read(gif(200_000)).image.size == (4, 4)
    assert time.process_time() - start < 1
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(50)]
    for kind in ("WEBP", "PNG", "TIFF", "GIF"):
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        assert read(content).image.getpixel((4, 4))[0] <= 1


def test_bmp_in_run_lengths():
    """Check that the decoder that Pillow has in Python is not used."""
    head = struct.pack("<LllHHLLllLL", 40, 1000, 1000, 1, 8, 1, 0, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<LHHL", 0, 0, 0, 54 + 1024) + head + b"\0" * 1024 + b"\0\1"
    assert reason_of(content) == "format"


def test_the_digest_is_of_pixels_and_size():
    image = noise(30, 20)
    assert (
        read(encoded(image, "PNG")).digest == read(encoded(image, "BMP")).digest == read(encoded(image, "TIFF")).digest
    )
    assert read(encoded(image.resize((20, 30)))).digest != read(encoded(image)).digest
    black = [read(encoded(Image.new("RGB", size))).digest for size in ((20, 30), (30, 20), (10, 60), (600, 1))]
    assert len(set(black)) == 4


def test_orientation_is_ignored_as_in_training():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = file_of(noise(30, 20), "JPEG", exif=exif)
    sent = read(content)
    assert sent.image.size == (30, 20)
    assert np.array_equal(np.asarray(sent.image), np.asarray(read_image(Image.open(io.BytesIO(content)))))


def test_errors_of_pillow_are_not_shown(monkeypatch):
    def fail(content):
        raise OSError(f"{io.BytesIO(content)!r} in /home/secret")

    monkeypatch.setattr(decode_module, "plain_jpeg", fail)
    with pytest.raises(MediaError) as caught:
        read(encoded(kind="JPEG"))
    assert caught.value.reason == "damaged" and "secret" not in str(caught.value) and "0x" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
