"""Files that are either whole or not there."""

import os
from pathlib import Path


def write_whole(path, content):
    """Write bytes, or many pieces of them, through a file beside `path` that takes its place in the end.

    Whatever goes wrong leaves nothing behind. Raises OSError.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that the user gave
        raise
