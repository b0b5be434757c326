"""Images opened from paths, http(s) addresses, data URIs and memory."""

import base64
import binascii
import io
import os
import struct
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .download_qwen import MAX_BYTES, TIMEOUT, ImageError, download
from .download_qwen import scheme_of as _scheme
from .download_qwen import shown as _shown
from .download_qwen import too_many_bytes as _too_many_bytes

MAX_PIXELS = 89_478_485  # above, Pillow warns of decompression bombs: 256 MiB as RGB
DIM = 32  # of 255: an image whose highest level is lower looks nearly black
SCALED = "scaled"  # key of an image's `info`: how its levels became 8 bits
BITS_PER_SAMPLE, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1  # tags of a TIFF file, and a value of the second

SearchDirs = str | os.PathLike | Sequence[str | os.PathLike]
OpenImage = Callable[[Any], Image.Image]  # from a reference in a text or a call to an RGB image, or an ImageError

# The EPS reader hands the file to Ghostscript; an image must never start another program.
REFUSED_FORMATS = {"EPS"}


def read_image(
    reference: Any,
    *,
    search_dirs: SearchDirs = (),
    timeout: float = TIMEOUT,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return the image that a reference names, as an RGB PIL image that holds no open file.

    reference: a local path, an http(s) address, a `data:` URI with base64, or a PIL image, which is only converted.
    A relative path is searched in each of `search_dirs`, then in the working directory. `timeout` (seconds) limits a
    download, `max_bytes` a download or a data URI, `max_pixels` all that is decoded here.
    Alpha is dropped, EXIF orientation is ignored, and the first frame of an animation is taken
    (docs/checkpoint_format.md section 4). Gray of more than 8 bits is scaled to 8 (`_to_8_bits`), and
    `info["scaled"]` says how; the original clips it.
    Raise ImageError if the image cannot be opened.
    """
    if isinstance(reference, Image.Image):
        return _to_rgb(reference, *_in_memory(reference))
    if isinstance(reference, os.PathLike):
        reference = os.fspath(reference)
    if not isinstance(reference, str) or not reference:
        shown = " ".join(f"{reference!r:.60}".split())
        raise ImageError(
            f"image {shown}: use a path, an http(s) address, a data: URI or a PIL image (Image.fromarray of an array)"
        )
    scheme = _scheme(reference)
    if scheme is None:
        return _open_file(reference, search_dirs, max_pixels)
    if scheme == "data":
        return _decode(io.BytesIO(_data_uri_bytes(reference, max_bytes)), _shown(reference), max_pixels)
    if scheme not in ("http", "https"):
        raise ImageError(f"image {_shown(reference)}: {scheme}:// is not read; use a path or an http(s) address")
    content, content_type = download(reference, timeout, max_bytes)
    origin = f"{_shown(reference)} (the server calls it {content_type})" if content_type else _shown(reference)
    return _decode(io.BytesIO(content), origin, max_pixels)


def decode(content: bytes, name: str) -> Image.Image:
    """Return the RGB image of an encoded file's bytes, as `read_image` does. Raise ImageError, which says `name`."""
    return _decode(io.BytesIO(content), _shown(name), MAX_PIXELS)


def image_opener(open_image: OpenImage | None) -> OpenImage:
    """Return the function that opens the images a prompt names: `open_image`, by default `read_image`.

    A server passes a function that decides what a request may read. It takes a reference as written in the text (a
    path, an address or a data URI), and returns an RGB PIL image or raises ImageError. `refuse_images` is one.
    Raise ValueError if `open_image` is not callable. The returned function raises ValueError if it gets no image.
    """
    if open_image is None:
        return read_image
    if not callable(open_image):
        raise ValueError(
            f"open_image is a {type(open_image).__name__}; pass a function that takes a reference and returns a PIL "
            "image, or None to open any path and address"
        )

    def opened(reference: Any) -> Image.Image:
        image = open_image(reference)
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"open_image returned a {type(image).__name__} for {reference!r:.80}; return an RGB PIL image, or "
                "raise ImageError"
            )
        return image

    return opened


def refuse_images(reference: Any) -> Image.Image:
    """Raise ImageError for any reference: the opener of a process in which a text must not open files."""
    name = _shown(reference) if isinstance(reference, str) else f"{reference!r:.60}"
    raise ImageError(f"image {name}: images named in a text are not opened here; pass the image itself")


def find_image(reference: str, search_dirs: SearchDirs = ()) -> str | None:
    """Return the path of a local image, or None. A relative one is searched in each folder, then the working folder."""
    return next((path for path in _candidates(reference, search_dirs) if os.path.isfile(path)), None)


def is_local(reference: str) -> bool:
    """Return whether a reference is a path on this machine, and neither an address nor a data URI."""
    return _scheme(reference) is None


def _in_memory(image: Image.Image) -> tuple[str, str]:
    """Return the name of a PIL image for an error message, and advice."""
    return f"in memory ({image.mode}, {image.width} x {image.height})", "give one that Pillow can load"


def _candidates(reference: str, search_dirs: SearchDirs) -> list[str]:
    """Return the paths at which a local image is searched, in order."""
    if isinstance(search_dirs, str | os.PathLike):
        search_dirs = (search_dirs,)
    if os.path.isabs(reference):
        return [reference]
    return [os.path.join(folder, reference) for folder in search_dirs] + [reference]


def _open_file(reference: str, search_dirs: SearchDirs, max_pixels: int) -> Image.Image:
    path = find_image(reference, search_dirs)
    if path is None:
        raise _missing(reference, search_dirs)
    shown = _shown(path)
    try:
        with open(path, "rb") as stream:
            return _decode(stream, shown, max_pixels)
    except OSError as error:
        raise ImageError(f"image {shown}: {error.strerror or error}; make the file readable") from error


def _missing(reference: str, search_dirs: SearchDirs) -> ImageError:
    """Return an ImageError that lists the paths that were searched."""
    places = [os.path.abspath(path) for path in _candidates(reference, search_dirs) if "\0" not in path]
    folder = next((place for place in places if os.path.isdir(place)), None)
    if folder is not None:
        return ImageError(f"image {_shown(reference)}: {_shown(folder)} is a folder; name an image in it")
    looked = ", ".join(dict.fromkeys(_shown(place) for place in places)) or "nowhere, as it holds a zero byte"
    return ImageError(
        f"image {_shown(reference)}: no such file (looked for {looked}); correct the path, or name the folder of "
        "the images"
    )


def _decode(stream: BinaryIO, shown: str, max_pixels: int) -> Image.Image:
    """Return the RGB image in an open file. Its header gives the size before memory is allocated for pixels."""
    image = _read_header(stream, shown)
    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(shown, f"{width} x {height} pixels, the limit is {max_pixels}")
    return _to_rgb(image, shown, "the file is damaged or cut short; get it again or leave it out")


def _read_header(stream: BinaryIO, shown: str) -> Image.Image:
    """Return a PIL image of which only the header is read.

    It uses Pillow's table of formats, because `Image.open` checks the size against a limit that belongs to the whole
    process and only causes a warning.
    """
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"image {shown}: empty; get it again or leave it out")
    for name in [name for name in Image.ID if name not in REFUSED_FORMATS]:
        factory, accepts = Image.OPEN[name]
        try:
            if accepts and accepts(prefix) is not True:
                continue
            stream.seek(0)
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # Pillow's readers raise these for another format
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(shown, str(error)) from error
        except Exception as error:  # readers raise any exception on a damaged header
            raise ImageError(f"image {shown}: the header is damaged ({error}); get the file again") from error
    raise ImageError(f"image {shown}: not an image that Pillow reads; convert it to PNG or JPEG, or leave it out")


def _too_many_pixels(shown: str, detail: str) -> ImageError:
    return ImageError(f"image {shown}: too large to decode ({detail}); shrink it, or leave it out")


def _to_rgb(image: Image.Image, shown: str, advice: str) -> Image.Image:
    """Return the loaded image as RGB. Raise ImageError for any error that a decoder raises on damaged data."""
    try:
        image.load()
        image = _to_8_bits(image)
        if isinstance(image.info.get("transparency"), bytes):
            # Alpha is dropped anyway, and Pillow would warn about a palette with alpha.
            image = image.copy()
            del image.info["transparency"]
        return image.convert("RGB")
    except Exception as error:
        raise ImageError(f"image {shown}: cannot be decoded ({error}); {advice}") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return a loaded gray image of more than 8 bits in mode L; others unchanged. info[SCALED] says how it was scaled.

    Levels of 12 or 16 bits are divided by the range of that many bits. No file says the range of 32-bit numbers and
    floats. Floats from 0 to 1 are multiplied by 255. Numbers from 0 to 255 are levels already, unless they are floats
    so low that the image would be black. Otherwise 0, or the lowest number if it is negative, becomes black, and the
    highest becomes white. NaN becomes black.
    """
    bits = _bits(image)
    if image.mode not in ("I", "F") and not bits:
        return image
    values, tags = np.asarray(image), getattr(image, "tag_v2", None)
    if tags is not None and values.dtype == np.int32 and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        values = values.view(np.uint32)  # for which Pillow has no mode
    finite = values[np.isfinite(values)]
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if bits:
        top = 2**bits - 1
        levels = np.rint(np.arange(2**16) * (255 / top)).clip(0, 255).astype(np.uint8)[values]
        dark = f"; dark, as nothing in it is above {highest:.0f} of {top}" if highest * 255 < DIM * top else ""
        scaled = f"{bits}-bit gray: scaled to 8 bits{dark}"
    else:
        is_float, within = image.mode == "F", lowest >= 0 and highest <= 255
        if within and finite.size == values.size and (not is_float or highest >= DIM):
            return image
        low, high = min(lowest, 0.0), 1.0 if is_float and within and highest <= 1 else highest
        values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        levels = np.rint((values - low) * (255 / ((high - low) or 1))).astype(np.uint8)
        scaled = f"{'float' if is_float else '32-bit'} gray: {low:g} .. {high:g} scaled to 8 bits"
    image, info = Image.fromarray(levels), image.info
    image.info = {key: value for key, value in info.items() if key != "transparency"} | {SCALED: scaled}
    return image


def _bits(image: Image.Image) -> int | None:
    """Return the bits per level, 12 or 16, of a gray image if its file or mode says them, else None."""
    if image.mode.startswith("I;16"):
        return getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None  # neither has 32


def _data_uri_bytes(reference: str, max_bytes: int) -> bytes:
    """Return the bytes in a base64 `data:` URI. Raise ImageError for another encoding or too many bytes."""
    shown = _shown(reference)
    head, comma, payload = reference.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError(f"image {shown}: not base64; write data:image/png;base64,.. with the encoded file")
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise _too_many_bytes(shown, max_bytes)
    try:
        content = base64.b64decode("".join(urllib.parse.unquote(payload).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"image {shown}: broken base64 ({error}); encode the file again") from error
    if len(content) > max_bytes:
        raise _too_many_bytes(shown, max_bytes)
    return content
