"""Downloads from the Hugging Face hub, into its own cache, by `huggingface_hub`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import errors
from .names import RepoName

logger = logging.getLogger(__name__)

COMMITS: dict[tuple[RepoName, str | None], str] = {}  # by (name, cache folder), for all files of a process
UNREACHABLE: set[RepoName] = set()  # models for which this process waited in vain, so it does not wait again


def find_file(name: RepoName, file: str, cache_dir: str | None) -> str | None:
    """Return the local path of a file of a model, downloaded if need be; None if the model has no such file.

    Raise FileNotFoundError, PermissionError or OSError, see `errors`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    commit = COMMITS.get((name, cache_dir))
    with clear_errors(name, "model"):
        try:
            found = hf_hub_download(
                name.repo,
                file,
                revision=commit or name.revision,
                cache_dir=cache_dir,
                endpoint=endpoint(),
                local_files_only=name in UNREACHABLE,
            )
        except LocalEntryNotFoundError:
            UNREACHABLE.add(name)
            if not commit and not is_cached(name, cache_dir):
                raise
            return None  # not in the copy that is here
        except EntryNotFoundError:
            return None
    if not commit:
        folder = Path(found).parents[file.count("/")]
        COMMITS[name, cache_dir] = folder.name
        logger.info("%s: commit %s in %s", name, folder.name, folder)
    return found


def dataset_folder(name: RepoName, cache_dir: str | None) -> str:
    """Return the folder with all files of a data set, downloaded if need be. Errors are those of `find_file`."""
    from huggingface_hub import snapshot_download

    with clear_errors(name, "data set"):
        return snapshot_download(
            name.repo, repo_type="dataset", revision=name.revision, cache_dir=cache_dir, endpoint=endpoint()
        )


def endpoint() -> str | None:
    """Return the address of the hub that the environment names now; None for that of `huggingface_hub`."""
    return os.environ.get("HF_ENDPOINT") or None


def is_cached(name: RepoName, cache_dir: str | None) -> bool:
    """Return whether some files of a model, at the revision that is asked for, are in the cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(cache_dir or HF_HUB_CACHE, "models--" + name.repo.replace("/", "--"))
    revision = name.revision or "main"
    return (folder / "refs" / revision).is_file() or (folder / "snapshots" / revision).is_dir()


@contextmanager
def clear_errors(name: RepoName, kind: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` within this block into those of `errors`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status in (401, 403):
            raise errors.denied(name, status) from error
        raise errors.unreachable(name, errors.first_line(error.__cause__ or error)) from error
    except GatedRepoError as error:
        raise errors.denied(name, error.response.status_code) from error
    except RevisionNotFoundError as error:
        raise errors.no_revision(name) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise errors.no_repo(name, kind) from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise errors.denied(name, error.response.status_code) from error
        raise errors.failed(name, error) from error
    except OSError as error:
        raise errors.failed(name, error) from error
