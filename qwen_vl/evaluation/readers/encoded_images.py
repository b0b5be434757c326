"""Encoded images in the cells of a table: base64 to bytes, and whether these are a whole image."""

import base64
import binascii
import io
import re

from PIL import Image

SPREADSHEET_CELL = 32_767  # characters: longer ones are cut by spreadsheet programs
PNG_END = b"IEND\xaeB`\x82"
JPEG_END, JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


def from_base64(text: str) -> bytes:
    """Return the bytes of a base64 text, which may have newlines and be a data URI; raise ValueError if it is cut."""
    start = DATA_URI.match(text)
    packed = "".join(text[start.end() if start else 0 :].split())
    try:
        return base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        cut = "; a spreadsheet program cuts cells there" if len(text) == SPREADSHEET_CELL else ""
        raise ValueError(f"{len(text):,} characters that are no whole base64 text ({error}){cut}") from error


def check_image(content: bytes) -> tuple[int, int] | None:
    """Return (width, height) of an image, None if it has too many pixels to open; raise ValueError if it is cut.

    Reads the header and the last bytes, so that a data set is checked quickly: an image may still fail to decode.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            form, size = image.format, image.size
            if form == "JPEG" and content.rfind(JPEG_END) < content.rfind(JPEG_SCAN):
                image.load()  # decides: some whole images have no end marker
    except Image.DecompressionBombError:
        return None  # said when it is opened
    except (OSError, ValueError, SyntaxError) as error:
        reason = "no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"{len(content):,} bytes: {reason}") from error
    if form == "PNG" and PNG_END not in content:
        raise ValueError(f"{len(content):,} bytes of a PNG image without its end")
    return size
