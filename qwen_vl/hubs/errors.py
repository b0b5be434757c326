"""The errors of both hubs as one clear line: what is wrong, on which hub, and what to do."""

from .names import HUGGING_FACE, RepoName

LOGIN = {
    HUGGING_FACE: "log in (hf auth login) or set HF_TOKEN",
    "modelscope": "log in (modelscope login) or set MODELSCOPE_API_TOKEN",
}


def no_repo(name: RepoName, kind: str) -> FileNotFoundError:
    """Return the error for a repository that does not exist, or that is private, which a hub does not tell apart."""
    return FileNotFoundError(
        f"{name}: no folder here, and {name.title} has no such {kind}, or it is private; check the name, or, for a "
        f"private one, {LOGIN[name.hub]}"
    )


def no_revision(name: RepoName) -> FileNotFoundError:
    """Return the error for a revision that does not exist."""
    return FileNotFoundError(
        f"{name}: {name.title} has {name.repo}, but not its revision {name.revision!r}; name a branch, tag or commit"
    )


def denied(name: RepoName, status: int) -> PermissionError:
    """Return the error for a repository that the token, or its absence, does not open."""
    cure = f"ask for access on its page, or {LOGIN[name.hub]} with a token that may read it"
    return PermissionError(f"{name}: {name.title} refuses access ({status}); {cure}")


def unreachable(name: RepoName, reason: str) -> FileNotFoundError:
    """Return the error for something that is not downloaded yet while the hub cannot be reached."""
    return FileNotFoundError(
        f"{name}: no folder here, not downloaded yet, and {name.title} cannot be reached ({reason}); check the name "
        "and the network, or download it elsewhere and give the folder"
    )


def failed(name: RepoName, error: BaseException) -> OSError:
    """Return the error for a download that failed in another way."""
    return OSError(
        f"{name}: the download from {name.title} failed ({first_line(error)}); start again, what is complete is kept"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
