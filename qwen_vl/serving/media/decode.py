"""Images of requests from bytes: six formats, and limits that hold before memory or time is spent.

Pillow alone does not limit what a small file may cost. What is known to cost much is looked for first: the canvas of
WEBP, the tiles of TIFF, metadata and scans of JPEG. A stream that counts its reads stops the rest.
"""

import io
import re
import struct

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..conversation import SentImage
from .policy import MediaError

Size = tuple[int, int]

# The bytes at the start decide, not what a request or a server calls them. Formats beyond these are large parsers.
READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    rb"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    rb"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    rb"RIFF....WEBP": WebPImagePlugin.WebPImageFile,
    rb"GIF8[79]a": GifImagePlugin.GifImageFile,
    rb"BM": BmpImagePlugin.BmpImageFile,
    rb"II\*\0|MM\0\*": TiffImagePlugin.TiffImageFile,
}
SLOW_DECODERS = {"bmp_rle"}  # written in Python: seconds for a file of some kilobytes

# JPEG: a marker with a segment. Zero is a byte of the image, and D0 to D7 have none.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
JPEG_END, JPEG_BARE, JPEG_SCAN = 0xD9, {0x01, 0xD8}, b"\xff\xda"
JPEG_METADATA = {*range(0xE1, 0xF0), 0xFE} - {0xEE}  # all but JFIF and Adobe, which say what the colors are
MAX_SCANS = 100  # of a progressive JPEG; usual are 10. Each scan costs the time of the whole image
MAX_SEGMENTS = 20_000

# TIFF: tags, the kinds of numbers in them, and the compressions without a large parser or a dictionary of any size.
COMPRESSION, STRIP_OFFSETS, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS = 259, 273, 322, 323, 324
NUMBER_KINDS = {1: "B", 3: "H", 4: "L"}
COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}  # none, CCITT, LZW, JPEG, deflate, PackBits
MAX_PARTS = 2**18  # strips or tiles: 65,535 rows of four colors

HEADER_READS = 10_000  # by which the size must be known
BYTES_PER_READ = 256  # afterwards, on average, beyond HEADER_READS
TIMES_READ = 4  # of all bytes: TIFF reads its directory three times


class CountingStream(io.BytesIO):
    """A file in memory that raises ValueError once it is read more often, or more in all, than an image needs.

    A small file can ask for the same bytes any number of times, or for one byte at a time.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads_left = HEADER_READS
        self.bytes_left = TIMES_READ * len(content) + 2**16

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(found)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ValueError("an image that is read too often")
        return found


def decode(content: bytes, *, max_pixels: int, max_side: int) -> SentImage:
    """Return the first frame of an image file as RGB.

    Raise MediaError if it has another format than READERS, is too large, or cannot be decoded whole.
    """
    reader = next((READERS[magic] for magic in READERS if re.match(magic, content, re.DOTALL)), None)
    if reader is None:
        raise MediaError("format")
    try:
        for size in _sizes_before(reader, content):
            _check_size(size, max_pixels, max_side)
        if reader is JpegImagePlugin.JpegImageFile:
            content = plain_jpeg(content)
        stream = CountingStream(content)
        image = reader(stream, "")
        _check_size(image.size, max_pixels, max_side)
        if any(tile.codec_name in SLOW_DECODERS for tile in image.tile):
            raise MediaError("format")
        stream.reads_left = HEADER_READS + len(content) // BYTES_PER_READ
        return SentImage.of(image)
    except MediaError:
        raise
    except Image.DecompressionBombError:
        raise MediaError("pixels", max_pixels) from None
    except Exception:  # readers raise any exception on damaged data, with words that are not for clients
        raise MediaError("damaged") from None


def _check_size(size: Size, max_pixels: int, max_side: int) -> None:
    """Raise MediaError if an image is too large. A side alone counts too: some buffers grow with it."""
    if max(size) > max_side:
        raise MediaError("side", max_side)
    if size[0] * size[1] > max_pixels:
        raise MediaError("pixels", max_pixels)


def _sizes_before(reader: type[ImageFile.ImageFile], content: bytes) -> list[Size]:
    """Return the sizes of what Pillow allocates before it tells the size of an image, or beyond that size."""
    if reader is WebPImagePlugin.WebPImageFile:
        return [webp_size(content)]
    if reader is TiffImagePlugin.TiffImageFile:
        return tiff_tiles(content)
    return []


def webp_size(content: bytes) -> Size:
    """Return the width and height that the header of a WEBP file says. Raise MediaError if it has none."""
    kind, body = content[12:16], content[20:30]
    if len(body) == 10 and kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if len(body) == 10 and kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if len(body) == 10 and kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise MediaError("damaged")


def tiff_tiles(content: bytes) -> list[Size]:
    """Return the width and height of the tiles of a TIFF file's first image, in a list that is empty without tiles.

    Every entry of the directory counts, because readers differ in which of two they believe.
    Raise MediaError for a compression that is not read here, for too many parts, and for tiles of an unclear size.
    """
    order = "<" if content.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}L", content, 4)
    (num_entries,) = struct.unpack_from(f"{order}H", content, start)
    sides: dict[int, list[int]] = {TILE_WIDTH: [], TILE_LENGTH: []}
    for at in range(start + 2, start + 2 + 12 * num_entries, 12):
        tag, kind, count = struct.unpack_from(f"{order}HHL", content, at)
        if tag in (STRIP_OFFSETS, TILE_OFFSETS) and count > MAX_PARTS:
            raise MediaError("damaged")
        if tag not in (COMPRESSION, TILE_WIDTH, TILE_LENGTH):
            continue
        if count != 1 or kind not in NUMBER_KINDS:
            raise MediaError("damaged")
        (value,) = struct.unpack_from(order + NUMBER_KINDS[kind], content, at + 8)
        if tag == COMPRESSION and value not in COMPRESSIONS:
            raise MediaError("format")
        if tag != COMPRESSION:
            sides[tag].append(value)
    widths, lengths = sides[TILE_WIDTH], sides[TILE_LENGTH]
    return [(max(widths, default=0), max(lengths, default=0))] if widths or lengths else []


def plain_jpeg(content: bytes) -> bytes:
    """Return a JPEG file without metadata, and without what comes after its end.

    Pillow reads EXIF for the resolution, and some kilobytes of it can ask for gigabytes.
    Raise MediaError if the file has too many scans or segments.
    """
    kept, position = [], 0
    for _ in range(MAX_SEGMENTS):
        found = JPEG_MARKER.search(content, position)
        if found is None:
            break
        code = content[found.start() + 1]
        is_bare = code in JPEG_BARE or code == JPEG_END
        end = found.end() + (0 if is_bare else int.from_bytes(content[found.end() : found.end() + 2], "big"))
        kept.append(content[position : found.start() if code in JPEG_METADATA else end])
        position = end
        if code == JPEG_END:
            position = len(content)
            break
    else:
        raise MediaError("damaged")
    plain = b"".join([*kept, content[position:]])
    if plain.count(JPEG_SCAN) > MAX_SCANS:
        raise MediaError("damaged")
    return plain
