"""Downloads from ModelScope, into its own cache, by `modelscope_hub`, the part of `modelscope` that does them.

`modelscope.snapshot_download` uses the same cache, so neither downloads what the other has.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from . import errors
from .names import RepoName

logger = logging.getLogger(__name__)

Entry = dict[str, Any]  # "Path", "Size" and "Sha256" of a file on the hub
DEFAULT_REVISION = "master"
OFFLINE = "HF_HUB_OFFLINE"  # of the environment; it holds for both hubs


def find_file(name: RepoName, file: str, cache_dir: str | None) -> str | None:
    """Return the local path of a file of a model, downloaded if need be; None if the model has no such file.

    Raise FileNotFoundError, PermissionError or OSError, see `errors`; ImportError without `modelscope`.
    """
    entries = listing(name, "model")
    if entries is None:
        found = Path(cached_folder(name, "model", cache_dir), file)
        return str(found) if found.is_file() else None
    if file not in entries:
        return None
    return str(Path(fetched(name, "model", [entries[file]], cache_dir), file))


def dataset_folder(name: RepoName, cache_dir: str | None) -> str:
    """Return the folder with all files of a data set, downloaded if need be. Errors are those of `find_file`."""
    entries = listing(name, "dataset")
    if entries is None:
        return cached_folder(name, "dataset", cache_dir)
    return fetched(name, "dataset", list(entries.values()), cache_dir)


@cache
def client(name: RepoName, kind: str) -> Any:
    """Return the client for the site of ModelScope that has a repository, with the settings of the environment."""
    return plain_client(name, plain_client(name).resolve_endpoint_for_read(name.repo, repo_type=kind))


def plain_client(name: RepoName, endpoint: str | None = None) -> Any:
    """Return a client with the settings of the environment. Raise ImportError if ModelScope's package is missing."""
    try:
        from modelscope_hub.api import HubApi
        from modelscope_hub.config import HubConfig
    except ImportError as error:
        raise ImportError(f"{name}: ModelScope needs its package; pip install 'qwen-vl[modelscope]'") from error
    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)  # what matters becomes an error here
    return HubApi(config=HubConfig(endpoint=endpoint))


def is_offline() -> bool:
    """Return whether the environment forbids the network."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


@cache
def listing(name: RepoName, kind: str) -> dict[str, Entry] | None:
    """Return {path: Entry} of all files of a repository; None, with a warning, if the hub cannot be reached.

    It is read once in a process, so all files are of one state of a branch.
    """
    if is_offline():
        return None
    with clear_errors(name, kind):
        plain_client(name)  # raises if the package is missing
        from modelscope_hub.errors import NetworkError, NotExistError, ServerError

        api = None
        try:
            api = client(name, kind)
            found = api.list_repo_files(name.repo, kind, revision=name.revision or DEFAULT_REVISION)
        except (NetworkError, ServerError) as error:
            logger.warning("%s: ModelScope cannot be reached (%s); taking what was downloaded", name, said(error))
            return None
        except NotExistError as error:
            if name.revision and api and api.repo_exists(name.repo, kind):
                raise errors.no_revision(name) from error
            raise
    files = [file for file in found if not file.is_dir]
    return {file.path: {"Path": file.path, "Size": file.size, "Sha256": file.sha256} for file in files}


def fetched(name: RepoName, kind: str, entries: list[Entry], cache_dir: str | None) -> str:
    """Return the folder of a repository in the cache, after a download of what is missing or was changed."""
    revision = name.revision or DEFAULT_REVISION
    folder = None
    with suppress(FileNotFoundError):
        folder = cached_folder(name, kind, cache_dir, revision)
    missing = [entry for entry in entries if folder is None or not is_verified(folder, entry)]
    if folder is not None and not missing:
        return folder
    with clear_errors(name, kind):
        api = client(name, kind)
        found = api.download_repo(name.repo, kind, revision=revision, cache_dir=cache_dir, file_list=missing)
    for entry in missing:
        note_of(str(found), entry).write_text(note(str(found), entry), encoding="utf-8")
    return str(found)


def cached_folder(name: RepoName, kind: str, cache_dir: str | None, revision: str | None = None) -> str:
    """Return the folder of a repository in the cache. Raise FileNotFoundError if there is none."""
    with clear_errors(name, kind):
        api = plain_client(name)
        from modelscope_hub.errors import CacheNotFound

        try:
            options: dict[str, Any] = {"revision": revision or name.revision, "local_files_only": True}
            return str(api.download_repo(name.repo, kind, cache_dir=cache_dir, **options))
        except CacheNotFound as error:
            raise errors.unreachable(name, f"{OFFLINE} is set" if is_offline() else "no answer") from error


# ModelScope's client reads every byte of a cached file to check it, which takes a minute for each start with a whole
# model. So the digest that was checked is noted next to the file, with its date and size.


def is_verified(folder: str, entry: Entry) -> bool:
    """Return whether a file in the cache is the one on the hub, and has not been written since that was checked."""
    try:
        return note_of(folder, entry).read_text(encoding="utf-8") == note(folder, entry)
    except OSError:
        return False


def note_of(folder: str, entry: Entry) -> Path:
    """Return the path of the note on a file in the cache."""
    file = Path(folder, entry["Path"])
    return file.with_name(f".{file.name}.checked")


def note(folder: str, entry: Entry) -> str:
    """Return what the note on a file says. Raise OSError if there is no file."""
    stat = Path(folder, entry["Path"]).stat()
    return f"{entry['Sha256']} {entry['Size']} {stat.st_mtime_ns} {stat.st_size}"


def said(error: BaseException) -> str:
    """Return what an error of ModelScope says, without codes."""
    return errors.first_line(Exception(getattr(error, "message", None) or error))


@contextmanager
def clear_errors(name: RepoName, kind: str) -> Iterator[None]:
    """Turn the errors of `modelscope_hub` within this block into those of `errors`."""
    try:
        yield
    except (ImportError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        from modelscope_hub.errors import (
            AuthenticationError,
            FileDownloadError,
            HubError,
            NotExistError,
            PermissionDeniedError,
        )

        causes = list(error.failed_files.values()) if isinstance(error, FileDownloadError) else [error]
        cause = causes[0] if causes else error
        if isinstance(cause, (AuthenticationError, PermissionDeniedError)):
            raise errors.denied(name, cause.status_code or 403) from error
        if isinstance(cause, NotExistError):
            raise errors.no_repo(name, "data set" if kind == "dataset" else kind) from error
        if isinstance(cause, (HubError, OSError)):
            raise errors.failed(name, Exception(said(cause))) from error
        raise
