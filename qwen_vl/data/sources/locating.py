"""Which files a path of data names: a file, a folder, a pattern, a name on a hub, or a YAML file that maps columns."""

import errno
import glob
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from qwen_vl.data import path_hints
from qwen_vl.data.validation import DataError

from . import json_files
from .columns import ColumnMap, is_map, read_map
from .hub_data import hub_files, is_hub_name
from .opening import plain_name

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".arrow")  # files to read in a folder; .json if there are none
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?:-[0-9]+-of-[0-9]+[^/]*)?\.")  # as hubs name their files


class Located(NamedTuple):
    """The files of a path of data.

    files: (file, prefix of its places); the prefix of a file alone is "", of others "/NAME". base: the folder from
    which relative images count. columns: how columns become records, or None. inputs: the other files that records
    depend on.
    """

    files: list[tuple[Path, str]]
    base: str
    columns: ColumnMap | None = None
    inputs: tuple[Path, ...] = ()


def locate(path: str | os.PathLike) -> Located:
    """Return the Located of a path of data.

    Raise DataError if a folder has no data files or several splits or a map is wrong; FileNotFoundError, with a hint
    on what may be wrong, if there is no such path; and what `hub_data.hub_files` raises.
    """
    if is_hub_name(path):
        files = hub_files(str(path))
        return Located([(file, f"/{file.name}") for file in files], str(files[0].parent))
    if is_map(path):
        columns = read_map(path)
        below = locate(columns.data)
        return below._replace(columns=columns, inputs=(Path(path), *below.inputs))
    return Located(_files(Path(path)), base_of(path))


def base_of(path: str | os.PathLike) -> str:
    """Return the folder from which relative images of a path of data count, whether the path exists or not."""
    if is_hub_name(path):
        return locate(path).base
    if is_map(path):
        return base_of(read_map(path).data)
    return os.path.abspath(path) if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))


def data_files(path: str | os.PathLike) -> list[tuple[Path, str]]:
    """Return [(file, prefix of its places), ..] of a path of data; errors are those of `locate`."""
    return locate(path).files


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return [(file, prefix of its places), ..] of a file, a folder, a saved `datasets` folder or a pattern."""
    if path.is_dir():
        return [(file, f"/{file.relative_to(path).as_posix()}") for file in _in_folder(path)]
    found = [] if path.exists() else sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
    if found:
        fixed = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        return [(Path(name), "/" + "/".join(Path(name).parts[fixed:])) for name in found]
    if not path.exists():
        hint = path_hints.hint(str(path), os.path.exists)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT) + hint, str(path))
    return [(path, "")]


def is_among(out: str | os.PathLike, path: str | os.PathLike) -> bool:
    """Return whether a file that is to be written would lie in a folder of data files."""
    return os.path.isdir(path) and Path(out).resolve().is_relative_to(Path(path).resolve())


def _in_folder(path: Path) -> list[Path]:
    """Return the data files of a folder, in order."""
    if (path / "state.json").is_file():
        return _of_dataset(path)
    saved = sorted(state.parent for state in path.glob("*/state.json"))
    if saved:
        raise _splits(path, [folder.name for folder in saved], saved[-1])
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    for suffixes in (SUFFIXES, (".json",)):
        found = [file for file in files if plain_name(file).suffix.lower() in suffixes]
        named = {match[1]: file for file in found if (match := SPLIT.match(file.name))}
        if len(named) > 1:
            name, file = max(named.items())
            raise _splits(path, sorted(named), file.with_name(f"{name}*{''.join(file.suffixes)}"))
        if found:
            return found
    patterns = ", ".join(f"*{suffix}" for suffix in (*SUFFIXES, ".json"))
    raise DataError(f"{path}: no file named {patterns} in this folder")


def _splits(path: Path, names: list[str], example: Path) -> DataError:
    return DataError(f"{path}: holds the splits {', '.join(names)}; name one of them, such as {str(example)!r}")


def _of_dataset(path: Path) -> list[Path]:
    """Return the files of a folder that `save_to_disk` of `datasets` wrote. Other files there are its caches."""
    state: Any = json_files.read_json(path / "state.json")  # any JSON value; what is no saved data set raises below
    try:
        files = [path / entry["filename"] for entry in state["_data_files"]]
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(f"{path}: a selection from a larger data set; call flatten_indices() and save it again")
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{path / 'state.json'}: not that of a saved data set; save it again") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path}: {', '.join(missing)} of the saved data set missing; copy or save it again")
    return files
