"""Loggers and the Hub: problems are reported before a run, and failures during the run do not end it.

Loggers are transformers' callbacks for wandb, tensorboard and others (--report_to).
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import huggingface_hub
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

logger = logging.getLogger(__name__)

WITHOUT_LOGIN = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


def check(settings: Any) -> list[str]:
    """Return a line for each reason why the loggers and the Hub of the flags cannot work, judged on this machine.

    Only rank 0 uses them, so other ranks check the names alone.
    """
    names = settings.report_to if settings.report_to != ["all"] else get_available_reporting_integrations()
    problems = [f"--report_to {name}: use none, tensorboard, wandb, or both" for name in names if not is_known(name)]
    if len(names) > 1 and not {"none", "all"}.isdisjoint(names):
        problems.append(f"--report_to {' '.join(names)}: none and all stand alone")
    if problems or os.environ.get("RANK", "0") != "0":
        return problems
    for name in names:
        reason = unusable(name, settings.logging_dir)
        problems += [f"--report_to {name}: {reason}"] if reason else []
    return problems + check_hub(settings)


def is_known(name: str) -> bool:
    """Return whether --report_to accepts a name."""
    return name in ("none", "all", *INTEGRATION_TO_CALLBACK)


def unusable(name: str, logging_dir: str | None) -> str | None:
    """Return why the logger of a name cannot be used here, or None."""
    if name == "none":
        return None
    if name == "wandb" and os.environ.get("WANDB_DISABLED", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "the environment variable WANDB_DISABLED forbids it; unset it, or leave wandb out"
    try:
        INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:  # each library has its own
        return one_line(error)
    if name == "wandb":
        return wandb_login()
    return blocked_folder(logging_dir) if name == "tensorboard" else None


def wandb_login() -> str | None:
    """Return why wandb has no account, or None; on a terminal, wandb can ask for the key."""
    mode, cure = os.environ.get("WANDB_MODE", "online"), "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
    if mode in WITHOUT_LOGIN or (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    import wandb
    from wandb.sdk import wandb_setup

    try:
        if wandb_setup.singleton().settings.mode in WITHOUT_LOGIN:  # by a settings file
            return None
        is_logged_in = wandb.login(prompt=False, verify=False)
    except (AttributeError, TypeError):  # another release of wandb, which checks the account when training begins
        return None
    except Exception as error:
        return f"{one_line(error)}; {cure}"
    return None if is_logged_in else f"no account, and no terminal to ask for one; {cure}"


def blocked_folder(folder: str | None) -> str | None:
    """Return why the folder of a log cannot be written, or None."""
    wanted = Path(folder or os.environ.get("TENSORBOARD_LOGGING_DIR") or ".").absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    reason = "may not be written" if existing.is_dir() else "is not a folder"
    return f"{existing} {reason}; give another --logging_dir"


def check_hub(settings: Any) -> list[str]:
    """Return a line for each reason why --push_to_hub cannot work."""
    if not settings.push_to_hub:
        return []
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return ["--push_to_hub: HF_HUB_OFFLINE is set, so nothing can be sent; unset it, or leave the flag out"]
    if not (settings.hub_token or huggingface_hub.get_token()):
        return ["--push_to_hub needs a token: run `hf auth login`, or set HF_TOKEN; or leave the flag out"]
    return []


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class GuardedLogger(TrainerCallback):
    """A logger that cannot end a run: a failure at the start is a ValueError, a later one disables it with a warning.

    callback: the logger, one of transformers'. name: that of --report_to.
    """

    def __init__(self, callback: TrainerCallback, name: str) -> None:
        self.callback, self._name, self._works = callback, name, True

    def _pass_on(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        if not self._works:
            return None
        try:
            return getattr(self.callback, event)(args, state, control, **kwargs)
        except Exception as error:  # any error of a library or its server
            if event == "on_train_begin":
                hint = " (WANDB_MODE=offline needs no server)" if self._name == "wandb" else ""
                raise ValueError(
                    f"--report_to {self._name}: {one_line(error)}; mend it, or leave it out{hint}"
                ) from error
            self._works = False
            logger.warning(
                "%s has failed at step %s (%s): the training goes on without it, and everything stands in "
                "metrics.jsonl", self._name, state.global_step, one_line(error),
            )  # fmt: skip
            return None


@contextmanager
def warning(what: str, then: str = "the training goes on without that") -> Iterator[None]:
    """Turn a failure in this block into a warning that begins with `what` and ends in `then`."""
    try:
        yield
    except Exception as error:  # any error of a library or its server
        logger.warning("%s (%s); %s", what, one_line(error), then)


for _event in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(GuardedLogger, _event, partialmethod(GuardedLogger._pass_on, _event))


def guard(callbacks: list[TrainerCallback]) -> None:
    """Wrap each logger in a list of callbacks with a GuardedLogger, in place."""
    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    for index, callback in enumerate(callbacks):
        if type(callback) in names:
            callbacks[index] = GuardedLogger(callback, names[type(callback)])
