"""The one place that turns the name of a model or a data set on a hub into files here.

Downloads go into the cache of the hub's own library. They are resumed if they were cut off, and need no network once
they are complete. All files that a process reads are of one commit.
"""

import os
from pathlib import Path

from . import hugging_face, model_scope
from .names import HUGGING_FACE, RepoName, parse

DATASETS = {HUGGING_FACE: hugging_face.dataset_folder, "modelscope": model_scope.dataset_folder}
FILES = {HUGGING_FACE: hugging_face.find_file, "modelscope": model_scope.find_file}


def find_file(name: str | os.PathLike[str], file: str, cache_dir: str | None = None) -> str | None:
    """Return the local path of a file of a model on a hub, downloaded if need be; None if the model has no such file.

    cache_dir: a folder for downloads instead of the hub's own. Raise FileNotFoundError if `name` is no name, or there
    is no such model or revision, or it was not downloaded while the hub cannot be reached; PermissionError if the hub
    refuses it; OSError if a download fails.
    """
    repo = _repo(name)
    return FILES[repo.hub](repo, file, cache_dir)


def folder_of(name: str | os.PathLike[str], file: str, cache_dir: str | None = None) -> str | None:
    """Return the local folder of a model on a hub that holds `file`; None if the model has no such file.

    The folder holds what was asked for so far, and perhaps more. Errors are those of `find_file`.
    """
    found = find_file(name, file, cache_dir)
    return None if found is None else str(Path(found).parents[file.count("/")])


def dataset_folder(name: str | os.PathLike[str], cache_dir: str | None = None) -> str:
    """Return the local folder with all files of a data set on a hub. Errors are those of `find_file`."""
    repo = _repo(name)
    return DATASETS[repo.hub](repo, cache_dir)


def _repo(name: str | os.PathLike[str]) -> RepoName:
    """Return the RepoName of a name; raise FileNotFoundError if it is a path or no name."""
    repo = None if os.path.exists(name) else parse(name)
    if repo is None:
        raise FileNotFoundError(
            f"{name}: no such checkpoint folder; give a folder or a hub name such as Qwen/Qwen-VL-Chat"
        )
    return repo
