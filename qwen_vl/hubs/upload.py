"""Uploads of models to both hubs. Tokens come from the environment or a login, never from flags."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from . import errors, model_scope
from .hugging_face import endpoint
from .names import HUGGING_FACE, RepoName

Files = Mapping[str, Path | bytes]  # by the path in the repository: a file here, or its content
PRIVATE = 1  # ModelScope's number for it
MESSAGE = "Upload by qwen-vl push"


def upload(name: RepoName, files: Files, *, private: bool) -> str:
    """Upload the files of a model to its hub, which makes the repository if there is none. Return its address.

    private: for a new repository; one that is there has to be private already. Other files of the repository stay.
    Raise PermissionError without a token or rights, ValueError if `private` is asked for and the repository is public,
    OSError if the upload fails.
    """
    send = to_hugging_face if name.hub == HUGGING_FACE else to_model_scope
    return send(name, files, private=private)


def to_hugging_face(name: RepoName, files: Files, *, private: bool) -> str:
    """Upload to Hugging Face, in one commit."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if not token:
        raise no_token(name)
    api = HfApi(endpoint=endpoint(), token=token)
    with clear_errors(name):
        api.create_repo(name.repo, private=private or None, exist_ok=True)
        check_private(name, private, is_private=bool(api.repo_info(name.repo).private))
        if name.revision:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
        api.create_commit(name.repo, operations, commit_message=MESSAGE, revision=name.revision)
    return f"{api.endpoint}/{name.repo}"


def to_model_scope(name: RepoName, files: Files, *, private: bool) -> str:
    """Upload to ModelScope: first each file that is given by its content, then the others, in one commit or more."""
    api = model_scope.plain_client(name)
    from modelscope_hub.config import HubConfig
    from modelscope_hub.errors import AlreadyExistsError

    config = HubConfig()
    if not config.token:
        raise no_token(name)
    with clear_errors(name), redirect_stdout(sys.stderr):  # it prints a report
        try:
            api.create_repo(name.repo, "model", visibility="private" if private else "public", license="other")
        except AlreadyExistsError:
            found = api.get_repo(name.repo, "model")
            check_private(name, private, is_private=bool(found.private) or found.visibility == PRIVATE)
        here = {path: file for path, file in files.items() if isinstance(file, Path)}
        options: dict[str, Any] = {"revision": name.revision, "commit_message": MESSAGE}
        for path in sorted(files.keys() - here.keys()):  # a refusal has its reason here, and not with a folder
            api.upload_file(name.repo, "model", path_or_fileobj=files[path], path_in_repo=path, **options)
        for folder in sorted({file.parent for file in here.values()}):
            names = sorted(path for path, file in here.items() if file.parent == folder)
            api.upload_folder(name.repo, "model", folder, allow_patterns=names, use_cache=False, **options)
    return f"{config.endpoint}/models/{name.repo}"


def no_token(name: RepoName) -> PermissionError:
    """Return the error for an upload without a token."""
    return PermissionError(f"{name}: an upload to {name.title} needs a token; {errors.LOGIN[name.hub]}")


def check_private(name: RepoName, private: bool, *, is_private: bool) -> None:
    """Raise ValueError if a model that shall be private would go to a public repository."""
    if private and not is_private:
        raise ValueError(
            f"{name}: --private, but {name.title} has it as a public repository; make that private on its page, or "
            "give another name"
        )


@contextmanager
def clear_errors(name: RepoName) -> Iterator[None]:
    """Turn what the clients of the hubs raise within this block into one clear line."""
    try:
        yield
    except (ValueError, PermissionError) as error:
        if status_of(error) is None:
            raise
        raise refused(name, error) from error
    except Exception as error:
        if status_of(error) is None and not isinstance(error, OSError) and not is_of_client(error):
            raise
        raise refused(name, error) from error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of a client carries."""
    response = getattr(error, "response", None)
    return getattr(error, "status_code", None) or getattr(response, "status_code", None)


def is_of_client(error: BaseException) -> bool:
    """Return whether an error, or the one behind it, comes from a client or what it talks HTTP with."""
    rooms = {type(one).__module__.partition(".")[0] for one in (error, error.__cause__)}
    return bool(rooms & {"huggingface_hub", "modelscope_hub", "httpx2", "requests"})


def refused(name: RepoName, error: BaseException) -> OSError:
    """Return the error for an upload that the hub refused, or that failed."""
    status = status_of(error)
    if status == 401:
        return PermissionError(f"{name}: {name.title} does not know the token (401); {errors.LOGIN[name.hub]} anew")
    if status in (403, 404):
        return PermissionError(
            f"{name}: {name.title} does not let this token write there ({status}); use a token with write rights, or a "
            "name under an owner that is yours"
        )
    reason = model_scope.said(error)
    return OSError(f"{name}: the upload to {name.title} failed ({reason}); start again, it sends what is missing")
