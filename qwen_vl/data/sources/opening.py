"""The format of a data file, by its first bytes, and its content without compression.

The name decides only if the bytes do not: a file named .json may be packed, and one named .gz may not be.
"""

import codecs
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from qwen_vl.data.validation import DataError

HEAD_BYTES = 512
NUM_PIECES, PIECE_BYTES = 16, 2**16  # of a file, for a digest of it
PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PACKED_SUFFIXES = (".gz", ".zst")
FORMS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}  # the last one begins a stream of Arrow
NAMED_FORMS = {".parquet": "parquet", ".arrow": "arrow"}
REFUSED = (
    (codecs.BOM_UTF16_LE, "UTF-16; save it as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16; save it as UTF-8"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself; get it with `git lfs pull`"),
    (b"PARE", "encrypted Parquet; write it without encryption"),
    (b"PK\x03\x04", "a zip archive; unpack it and name a file in it"),
    (b"BZh", "packed with bzip2; unpack it with `bunzip2`, or pack it with gzip or zstd"),
    (b"\xfd7zXZ", "packed with xz; unpack it with `unxz`, or pack it with gzip or zstd"),
    (b"FEA1", "Feather of version 1; write version 2, which is Arrow"),
    (b"SQLite format", "a database; write its rows as JSON Lines or Parquet"),
)
TAR = slice(257, 262)
WEB_PAGE = re.compile(rb"\s*<(?:!doctype|html)", re.IGNORECASE)


def form_of(path: str | os.PathLike) -> str:
    """Return "text", "parquet" or "arrow" for a file. Raise DataError if it is none of them, OSError if unreadable."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    packing = _packing(head)
    if packing:
        with open_bytes(path) as file:
            head = file.read(HEAD_BYTES)
    refusal = next((text for magic, text in REFUSED if head.startswith(magic)), None)
    if head[TAR] == b"ustar":
        refusal = "a tar archive; unpack it and name a file in it"
    if WEB_PAGE.match(head):
        refusal = "a web page, mostly the answer to a failed download; get the file again"
    if refusal:
        raise DataError(f"{path}: {refusal}")
    form = next((form for magic, form in FORMS.items() if head.startswith(magic)), None)
    if form and packing:
        raise DataError(f"{path}: {form.capitalize()} inside {packing}; unpack it, as its own compression is enough")
    if form is None and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"[", b"{"):
        form = NAMED_FORMS.get(Path(path).suffix.lower())
    return form or "text"


def _packing(head: bytes) -> str | None:
    return next((packing for magic, packing in PACKINGS.items() if head.startswith(magic)), None)


def sampled_digest(path: str | os.PathLike) -> str:
    """Return a digest of a file's size and of pieces of it, evenly spaced, so that 100 GB take no longer than 1 MB."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for index in range(NUM_PIECES):
            file.seek(max(0, size - PIECE_BYTES) * index // (NUM_PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()[:16]


def is_packed(path: str | os.PathLike) -> bool:
    """Return whether a file is compressed with gzip or zstd."""
    with open(path, "rb") as file:
        return _packing(file.read(4)) is not None


def plain_name(path: str | os.PathLike) -> Path:
    """Return the path without the suffix of its compression: data.jsonl for data.jsonl.gz."""
    path = Path(path)
    return path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path


@contextmanager
def open_bytes(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yield a file that is open for reading its bytes, without its compression.

    Raise DataError if a packed file turns out to be damaged or cut short while it is read, OSError.
    """
    with open(path, "rb") as file:
        packing = _packing(file.peek(4))
        if packing is None:
            yield file
            return
        try:
            # zstd by pyarrow: Python has it from 3.14 on.
            unpacked = gzip.GzipFile(fileobj=file) if packing == "gzip" else pa.CompressedInputStream(file, packing)
            with io.BufferedReader(unpacked) as content:
                yield content
        except (OSError, EOFError, zlib.error) as error:
            if getattr(error, "errno", None):  # of the disk, or of another file
                raise
            raise DataError(f"{path}: damaged or cut short {packing} ({error}); get or write the file again") from None


def packed(content: Iterator[bytes], path: str | os.PathLike) -> Iterator[bytes]:
    """Yield the content to write to `path`: packed if its name ends with .gz or .zst."""
    suffix = Path(path).suffix.lower()
    if suffix not in PACKED_SUFFIXES:
        yield from content
        return
    whole = b"".join(content)
    yield gzip.compress(whole, mtime=0) if suffix == ".gz" else pa.compress(whole, "zstd", asbytes=True)
