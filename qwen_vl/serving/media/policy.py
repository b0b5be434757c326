"""What a request may read: the limits, and the error for everything beyond them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ...model.download_qwen import MAX_BYTES, MAX_REDIRECTS, TIMEOUT

MediaUrls = Literal["public", "off", "any"]

# A message holds a number at most: never a path, an address, what a name resolved to, or the words of a library.
TEXTS: dict[str, str] = {
    "source": "this is no source of an image; use an http(s) address or a data: URI with base64",
    "urls_off": "this server downloads no images; send a data: URI with base64",
    "files_off": "this server reads no local files; send a data: URI with base64",
    "url": "the address is malformed; write http(s)://host/path without user names, backslashes and white space",
    "port": "the port of the address is not allowed here; use the usual port of http or https",
    "domain": "the host is not among the domains that this server reads; use one of them, or send a data: URI",
    "address": "the address names no public host; use a public http(s) address, or send a data: URI with base64",
    "unreachable": "the host gave no usable answer; check the address, or send a data: URI with base64",
    "status": "the host answered with status {value}; correct the address, or send a data: URI with base64",
    "redirects": "more than {value} redirects; use the final address",
    "timeout": "the image did not arrive within {value:g} seconds; try again, or send a data: URI with base64",
    "bytes": "the image has more than {value} bytes; send a smaller file",
    "pixels": "the image has more than {value} pixels; shrink it",
    "side": "the image has a side of more than {value} pixels; shrink it",
    "format": "this is no PNG, JPEG, WEBP, GIF, BMP or TIFF image of a common kind; convert it to PNG or JPEG",
    "damaged": "the image is damaged or cut short; encode it again",
    "file": "this path names no image that this server may read; correct it, or send a data: URI with base64",
}
REASONS = tuple(TEXTS)


class MediaError(ValueError):
    """An image that a request may not have, or that cannot be read.

    `reason` is one of REASONS, for metrics. The message may be shown to the client: it names the part of the request
    (`where`), and what to do.
    """

    def __init__(self, reason: str, value: float | None = None, *, where: str = "") -> None:
        self.reason, self.value, self.where = reason, value, where
        text = TEXTS[reason].format(value=value)
        super().__init__(f"{where}: {text}" if where else text)


@dataclass(frozen=True)
class MediaPolicy:
    """What a request may read, and how much of it. The defaults are safe for requests of strangers.

    media_urls: "public" downloads from public addresses alone, "any" from private ones too, "off" from none.
    allowed_domains: if given, only these hosts are read; `*.example.org` stands for all below example.org.
    allowed_local_dir: the folder whose images a request may name by a path. None: no local files.
    max_bytes, max_pixels, max_side: limits of one image. seconds: for a whole download, with name and redirects.
    ports: of addresses. num_decoders: images decoded at the same time, because a large one takes a lot of memory.
    Raise ValueError if a value makes no sense.
    """

    media_urls: MediaUrls = "public"
    allowed_domains: tuple[str, ...] = ()
    allowed_local_dir: Path | None = None
    max_bytes: int = MAX_BYTES
    max_pixels: int = 2**25  # 128 MiB in Pillow's memory
    max_side: int = 65_535
    seconds: float = TIMEOUT
    max_redirects: int = MAX_REDIRECTS
    ports: tuple[int, ...] = (80, 443)
    num_decoders: int = 2

    def __post_init__(self) -> None:
        if self.media_urls not in get_args(MediaUrls):
            raise ValueError(f"media_urls: {self.media_urls!r}; use one of {', '.join(get_args(MediaUrls))}")
        for name in ("max_bytes", "max_pixels", "max_side", "seconds", "num_decoders"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: {value}; use a positive number")
        if self.allowed_local_dir is not None and not self.allowed_local_dir.is_dir():
            raise ValueError(f"allowed_local_dir: {self.allowed_local_dir} is no folder; name the folder of the images")
