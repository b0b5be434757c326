"""Digests of data files. That of a large file is kept until the file changes, because 100 GB take minutes to read."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from qwen_vl.files import whole_file

LARGE = 256 * 2**20  # bytes: the digests of larger files are kept


def cache_folder() -> Path:
    """Return the folder of caches when no flag names one: $QWEN_VL_CACHE, else ~/.cache/qwen-vl."""
    return Path(os.environ.get("QWEN_VL_CACHE") or "~/.cache/qwen-vl").expanduser()


def file_digest(path: str | os.PathLike) -> str:
    """Return the hex SHA-256 of the bytes of a file. Several processes that need that of a large file read it once."""
    if os.path.getsize(path) < LARGE:
        return bytes_digest(path)
    place = os.path.realpath(path)
    note = cache_folder() / "digests" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{note}.lock"):
            return _noted(Path(place), note)
    except OSError:  # no folder that can be written
        return bytes_digest(path)


def _noted(path: Path, note: Path) -> str:
    """Return the digest that a note has of a file, or read the file and write the note."""
    state = path.stat()
    known = {"file": str(path), "size": state.st_size, "changed": state.st_mtime_ns}
    with suppress(OSError, ValueError):
        found = json.loads(note.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in known} == known:
            return found["sha256"]
    digest = bytes_digest(path)
    with suppress(OSError), whole_file(note) as file:
        file.write(json.dumps({**known, "sha256": digest}).encode())
    return digest


def bytes_digest(path: str | os.PathLike) -> str:
    """Return the hex SHA-256 of the bytes of a file, which are read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
