"""Local images of requests: regular files below one folder, and the same error for every other path."""

import os
import stat
import urllib.parse
from pathlib import Path

from .policy import MediaError


def path_of(source: str) -> str:
    """Return the path of a `file:` address, or a path as it is. Raise MediaError for a file of another machine."""
    if source[:7].lower() != "file://":
        return source
    host, slash, path = source[7:].partition("/")
    if host not in ("", "localhost"):
        raise MediaError("file")
    return urllib.parse.unquote(slash + path)


def read_file(path: str, folder: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file below `folder`, to which relative paths refer.

    Links are resolved first. The folders below `folder` are then opened one by one without following links, so that
    a link that is put there in between leads nowhere. Raise the same MediaError if the file is missing, forbidden,
    outside or not regular.
    """
    try:
        root = os.path.realpath(folder)
        inside = Path(os.path.realpath(os.path.join(root, path))).relative_to(root)
        with os.fdopen(_open_below(root, inside.parts), "rb") as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, ValueError):  # ValueError: outside, or no possible path
        raise MediaError("file") from None
    if len(content) > max_bytes:
        raise MediaError("bytes", max_bytes)
    return content


def _open_below(root: str, parts: tuple[str, ...]) -> int:
    """Return a descriptor of the regular file at `parts` below `root`. Raise OSError if there is none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(root, flags | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            parent, at = at, os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(parent)
        name = parts[-1] if parts else "."
        # To open a device or a pipe may do something by itself, so it is looked at before and after.
        _check_regular(os.stat(name, dir_fd=at, follow_symlinks=False))
        found = os.open(name, flags | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    try:
        _check_regular(os.fstat(found))
    except OSError:
        os.close(found)
        raise
    return found


def _check_regular(status: os.stat_result) -> None:
    """Raise OSError if a file is not a regular one."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
