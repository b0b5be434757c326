"""Pictures, from a reference to the numbers that the vision tower reads.

`open_picture` turns a path, an http(s) address, a data URI or a PIL image into an RGB PIL image, or raises one
`PictureError`. `pixels` turns that into a normalised tensor, `QWenImageProcessor` does both for a batch.
"""

import base64
import binascii
import functools
import http.client
import io
import os
import re
import struct
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

IMAGE_SIZE = 448
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

TIMEOUT = 10.0  # seconds, for the whole of one download
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: 256 MiB as RGB
MAX_REDIRECTS = 5
REDIRECTS = {301, 302, 303, 307, 308}
SHOWN_LENGTH = 100  # characters of a reference that an error shows

# The EPS reader hands the file to Ghostscript; a picture must never start another program.
REFUSED_FORMATS = {"EPS"}


class PictureError(ValueError):
    """A picture that cannot be had; the message says which, why, and what to do."""


def open_picture(reference, *, search_dirs=(), timeout=TIMEOUT, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS):
    """The picture behind a reference, as an RGB PIL image that holds no open file.

    reference: a local path, an http(s) address, a `data:` URI with base64, or a PIL image, which is only converted.
    A relative path is looked for in each of `search_dirs`, then in the working directory. `timeout` (seconds) and
    `max_bytes` bound a download, `max_bytes` a data URI too, `max_pixels` everything that is decoded here.
    Alpha is dropped, EXIF orientation ignored, the first frame of an animation taken
    (docs/checkpoint_format.md section 4).
    Raises PictureError.
    """
    if isinstance(reference, Image.Image):
        return _to_rgb(reference, *_in_memory(reference))
    if isinstance(reference, os.PathLike):
        reference = os.fspath(reference)
    if not isinstance(reference, str) or not reference:
        raise PictureError(f"picture {reference!r}: use a path, an http(s) address, a data: URI or a PIL image")
    scheme = _scheme(reference)
    if scheme is None:
        return _open_file(reference, search_dirs, max_pixels)
    if scheme == "data":
        return _decode(io.BytesIO(_data_uri_bytes(reference, max_bytes)), _shown(reference), max_pixels)
    if scheme not in ("http", "https"):
        raise PictureError(f"picture {_shown(reference)}: {scheme}:// is not read; use a path or an http(s) address")
    content, content_type = _download(reference, timeout, max_bytes)
    origin = f"{_shown(reference)} (the server calls it {content_type})" if content_type else _shown(reference)
    return _decode(io.BytesIO(content), origin, max_pixels)


def find_picture(reference, search_dirs=()):
    """The path of a local picture, or None: as it is if absolute, else from each search dir, then the working dir."""
    return next((path for path in _candidates(reference, search_dirs) if os.path.isfile(path)), None)


def is_local(reference):
    """Whether a reference is a path on this machine, and neither an address nor a data URI."""
    return _scheme(reference) is None


def pixels(picture, image_size=IMAGE_SIZE):
    """float32 [3, image_size, image_size]: the picture squashed to a square and normalised.

    Source: docs/checkpoint_format.md section 4.
    """
    picture = _to_rgb(picture, *_in_memory(picture))
    levels = torch.from_numpy(np.array(_squash(picture, image_size))).permute(2, 0, 1)  # uint8 [3, S, S]
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    # Divide, subtract, divide, each rounded to float32: any other order differs from the reference in the last bit.
    return levels.contiguous().to(torch.float32).div_(255).sub_(mean).div_(std)


def _squash(picture, size):
    """The picture as size x size, bicubic, the aspect ratio not kept.

    One axis after the other, with rounding to bytes between, so their order shows in the last bits. Pillow 13 shrinks
    a picture's height first where that saves the most work, Pillow 12 and older nearly never: the order is fixed
    here to that of Pillow 13, with which the reference was recorded, and the numbers are the same under each.
    """
    width, height = picture.size
    height_first = height > size and height - size > 2 * (width - size)
    between = (width, size) if height_first else (size, height)
    for step in (between, (size, size)):
        picture = picture.resize(step, Image.Resampling.BICUBIC)
    return picture


class QWenImagesKwargs(ImagesKwargs, total=False):
    """What `from_pretrained` may override, for transformers."""

    image_size: int


class QWenImageProcessor(BaseImageProcessor):
    """`processor(pictures)` -> BatchFeature with pixel_values float32 [N, 3, image_size, image_size].

    Takes one picture or a list (nested lists are flattened, in order) of whatever `open_picture` takes.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (the base class declares it so)
    valid_kwargs = QWenImagesKwargs

    def __init__(self, image_size=IMAGE_SIZE, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size: {image_size!r}; use a positive number of pixels, such as {IMAGE_SIZE}")
        self.image_size = image_size

    def preprocess(self, images, *, return_tensors="pt", **options):
        """BatchFeature(pixel_values); options as in `open_picture`. Raises PictureError, and ValueError if empty."""
        pictures = list(_flatten(images))
        if not pictures:
            raise ValueError("no picture given; leave the image processor out for text alone")
        # One after another, so that only the small squares of a batch are in memory together.
        rows = [pixels(open_picture(picture, **options), self.image_size) for picture in pictures]
        return BatchFeature({"pixel_values": torch.stack(rows)}, tensor_type=return_tensors)


QWenImageProcessor.register_for_auto_class("AutoImageProcessor")


def _flatten(images):
    """The pictures of arbitrarily nested lists and tuples, in order."""
    if not isinstance(images, list | tuple):
        yield images
        return
    for item in images:
        yield from _flatten(item)


def _scheme(reference):
    """The lower-case scheme of an address ("http", "data", "file" ..), or None for a path."""
    if reference[:5].lower() == "data:":
        return "data"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", reference)
    return match.group(1).lower() if match else None


def _shown(reference):
    """The reference in quotes, for an error: one line, and never a whole data URI."""
    if len(reference) <= SHOWN_LENGTH:
        return repr(reference)
    return f"{reference[:SHOWN_LENGTH]!r}... ({len(reference)} characters)"


def _in_memory(picture):
    """The name of a PIL image in an error, and the advice."""
    return f"in memory ({picture.mode}, {picture.width} x {picture.height})", "give one that Pillow can load"


def _candidates(reference, search_dirs):
    """Where a local reference may lie, in the order in which it is looked for."""
    if isinstance(search_dirs, str | os.PathLike):
        search_dirs = (search_dirs,)
    if os.path.isabs(reference):
        return [reference]
    return [os.path.join(folder, reference) for folder in search_dirs] + [reference]


def _open_file(reference, search_dirs, max_pixels):
    path = find_picture(reference, search_dirs)
    if path is None:
        raise _missing(reference, search_dirs)
    shown = _shown(path)
    try:
        with open(path, "rb") as stream:
            return _decode(stream, shown, max_pixels)
    except OSError as error:
        raise PictureError(f"picture {shown}: {error.strerror or error}; make the file readable") from error


def _missing(reference, search_dirs):
    """A PictureError that lists the places where the file is not."""
    places = [os.path.abspath(path) for path in _candidates(reference, search_dirs) if "\0" not in path]
    folder = next((place for place in places if os.path.isdir(place)), None)
    if folder is not None:
        return PictureError(f"picture {_shown(reference)}: {_shown(folder)} is a folder; name a picture in it")
    looked = ", ".join(dict.fromkeys(_shown(place) for place in places)) or "nowhere, as it holds a zero byte"
    return PictureError(
        f"picture {_shown(reference)}: no such file (looked for {looked}); correct the path, or name the folder of "
        "the pictures"
    )


def _decode(stream, shown, max_pixels):
    """RGB PIL image from an open file. The size is known from the header before any memory is taken for pixels."""
    picture = _read_header(stream, shown)
    width, height = picture.size
    if width * height > max_pixels:
        raise _too_many_pixels(shown, f"{width} x {height} pixels, the limit is {max_pixels}")
    return _to_rgb(picture, shown, "the file is damaged or cut short; get it again or leave it out")


def _read_header(stream, shown):
    """A PIL image whose header alone is read.

    Goes through Pillow's table of formats because `Image.open` compares the size with a limit of its own, which is
    a setting of the whole process and only warns.
    """
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise PictureError(f"picture {shown}: empty; get it again or leave it out")
    for name in [name for name in Image.ID if name not in REFUSED_FORMATS]:
        factory, accepts = Image.OPEN[name]
        try:
            if accepts and accepts(prefix) is not True:
                continue
            stream.seek(0)
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # how Pillow's readers say "not my format"
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(shown, str(error)) from error
        except Exception as error:  # readers raise anything on a damaged header
            raise PictureError(f"picture {shown}: the header is damaged ({error}); get the file again") from error
    raise PictureError(f"picture {shown}: not a picture that Pillow reads; convert it to PNG or JPEG, or leave it out")


def _too_many_pixels(shown, detail):
    return PictureError(f"picture {shown}: too large to decode ({detail}); shrink it, or leave it out")


def _to_rgb(picture, shown, advice):
    """The loaded picture as RGB. Decoders raise many kinds of errors on damaged data; all become a PictureError."""
    try:
        picture.load()
        if isinstance(picture.info.get("transparency"), bytes):
            # Alpha is dropped anyway; Pillow would warn of a palette with one.
            picture = picture.copy()
            del picture.info["transparency"]
        return picture.convert("RGB")
    except Exception as error:
        raise PictureError(f"picture {shown}: cannot be decoded ({error}); {advice}") from error


def _data_uri_bytes(reference, max_bytes):
    """The bytes that a base64 `data:` URI carries."""
    shown = _shown(reference)
    head, comma, payload = reference.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise PictureError(f"picture {shown}: not base64; write data:image/png;base64,.. with the encoded file")
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise _too_many_bytes(shown, max_bytes)
    try:
        content = base64.b64decode("".join(urllib.parse.unquote(payload).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"picture {shown}: broken base64 ({error}); encode the file again") from error
    if len(content) > max_bytes:
        raise _too_many_bytes(shown, max_bytes)
    return content


def _too_many_bytes(shown, max_bytes):
    return PictureError(f"picture {shown}: more than {max_bytes} bytes; give a smaller picture, or a local file")


@functools.cache
def _opener():
    """A urllib opener for http and https alone, proxies of the environment included; redirects come as errors."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _download(url, timeout, max_bytes):
    """(bytes, content type) of an http(s) address, after at most MAX_REDIRECTS redirects."""
    shown = _shown(url)
    deadline = time.monotonic() + timeout
    try:
        with _request(url, shown, deadline) as response:
            return _read_limited(response, shown, deadline, max_bytes), response.headers.get_content_type()
    except PictureError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise PictureError(
            f"picture {shown}: the server answered {error.code} {error.reason}; correct the address"
        ) from error
    except TimeoutError as error:
        raise _timed_out(shown, timeout) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, TimeoutError):
            raise _timed_out(shown, timeout) from error
        raise PictureError(
            f"picture {shown}: no download ({reason}); check the address and the network, or use a local file"
        ) from error


def _timed_out(shown, timeout):
    return PictureError(f"picture {shown}: not there within {timeout:g} seconds; try again, or use a local file")


def _request(url, shown, deadline):
    """The response to a GET.

    Redirects are followed by hand: urllib would read their bodies without a limit, and follow them to ftp.
    """
    for _ in range(MAX_REDIRECTS + 1):
        request = urllib.request.Request(_ascii_url(url), headers={"User-Agent": "qwen-vl"})
        try:
            return _opener().open(request, timeout=_time_left(deadline))
        except urllib.error.HTTPError as error:
            target = error.headers.get("Location")
            if error.code not in REDIRECTS or not target:
                raise
            error.close()
        url = urllib.parse.urljoin(url, target)
        if _scheme(url) not in ("http", "https"):
            raise PictureError(f"picture {shown}: redirected to {_shown(url)}; only http(s) is followed")
    raise PictureError(f"picture {shown}: more than {MAX_REDIRECTS} redirects; use the final address")


def _ascii_url(url):
    """The address with everything outside ASCII, and spaces, encoded as servers expect it."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(part, safe="%/:=&?+,;@!$'()*~[]") for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _read_limited(response, shown, deadline, max_bytes):
    """The body, counted while it arrives: a Content-Length may lie."""
    announced = None if response.chunked else response.length
    body = bytearray()
    while announced is None or len(body) < announced:
        chunk = response.read1(2**16)
        if not chunk:
            break
        body += chunk
        if len(body) > max_bytes:
            raise _too_many_bytes(shown, max_bytes)
        _time_left(deadline)
    if announced is not None and len(body) < announced:
        raise OSError(f"the connection closed after {len(body)} of {announced} bytes")
    return bytes(body)


def _time_left(deadline):
    """Seconds until the deadline; TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
