"""Names of models and data sets on a hub: OWNER/NAME, with a hub before it (ms:) and a revision behind it (@v1)."""

import os
import re
from typing import NamedTuple

VARIABLE = "QWEN_VL_HUB"  # of the environment: the hub of names without a prefix
HUGGING_FACE, MODEL_SCOPE = "huggingface", "modelscope"
HUBS = {HUGGING_FACE: "hf", MODEL_SCOPE: "ms"}  # hub: its prefix
TITLES = {HUGGING_FACE: "Hugging Face", MODEL_SCOPE: "ModelScope"}
NAME = re.compile(r"(?:(hf|ms):)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-][\w./-]*))?")


class RepoName(NamedTuple):
    """The name of a repository on a hub. revision: a branch, tag or commit; None for the hub's default branch."""

    hub: str
    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return the name as a user writes it, without a prefix if it means the same."""
        prefix = "" if self.hub == HUGGING_FACE == default_hub() else f"{HUBS[self.hub]}:"
        return f"{prefix}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @property
    def title(self) -> str:
        """Return the hub's name for people."""
        return TITLES[self.hub]


def default_hub() -> str:
    """Return the hub of names without a prefix. Raise ValueError if the environment names an unknown one."""
    hub = os.environ.get(VARIABLE) or HUGGING_FACE
    if hub not in HUBS:
        raise ValueError(f"{VARIABLE}={hub}: no hub that is known here; use {' or '.join(HUBS)}")
    return hub


def parse(text: str | os.PathLike[str]) -> RepoName | None:
    """Return the RepoName that a text is, or None if it is none; whether such a folder exists is not looked at."""
    match = NAME.fullmatch(str(text))
    if match is None:
        return None
    prefix, repo, revision = match.groups()
    return RepoName(next((hub for hub in HUBS if HUBS[hub] == prefix), None) or default_hub(), repo, revision)


def full(text: str, *, hub: str | None = None, revision: str | None = None) -> str:
    """Return the name with the hub and the revision that flags give; an existing folder or anything else unchanged.

    A prefix of the name wins over `hub`. Raise ValueError if `revision` contradicts the name, or if there is no name.
    """
    if hub is not None and hub not in HUBS:
        raise ValueError(f"--hub {hub}: no hub that is known here; use {' or '.join(HUBS)}")
    name = None if os.path.exists(text) else parse(text)
    if name is None:
        if revision:
            raise ValueError(f"--revision {revision}: goes with the name of a model on a hub, which {text} is not")
        return text
    if revision and name.revision not in (None, revision):
        raise ValueError(f"--revision {revision}: {text} names another one; leave one of them out")
    has_prefix = ":" in text.partition("/")[0]
    return str(RepoName(name.hub if has_prefix or hub is None else hub, name.repo, revision or name.revision))
