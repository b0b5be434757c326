"""Files that are either complete or absent: written under another name, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
