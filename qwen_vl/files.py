"""Files written whole or not at all, JSON files read with one clear error, bytes as an address."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` when the block ends. After an error in it, `path` is as before."""
    with renamed(path) as unfinished:
        try:
            with open(unfinished, "wb") as file:
                yield file
        except OSError as error:
            if error.filename in (None, str(unfinished)):  # a full disk names no file
                error.filename = str(path)  # the name that the user gave
            raise


@contextmanager
def replacing(path: str | os.PathLike[str], *, cure: str = "free some space, or use another folder") -> Iterator[Path]:
    """Yield the name under which the block writes the file that then replaces `path`.

    Raise OSError that names `path` and ends in `cure` if the write fails, however a library reports it.
    """
    try:
        with renamed(path) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: could not be written ({error}); {cure}") from error


@contextmanager
def renamed(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the name of an unfinished file, which becomes `path` at the end of the block and is gone after an error."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str], *, cure: str, encoding: str = "utf-8") -> Any:
    """Return the content of a JSON file. Raise ValueError that names the file and ends in `cure` if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding=encoding))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {cure}") from error


def read_object(path: str | os.PathLike[str], *, cure: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raise ValueError as `read_json` does, and for anything but an object."""
    content = read_json(path, cure=cure)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not an object; {cure}")
    return content


def read_entries(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the entries of a file of JSON Lines, without what a killed run left unfinished at its end."""
    entries: list[dict[str, Any]] = []
    for line in Path(path).read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if line.endswith(b"\n"):
            entries.append(entry)
    return entries


def data_uri(content: bytes, kind: str) -> str:
    """Return the bytes of a file as a data: URI; kind: a MIME type, such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
