"""Loggers and the hub: what keeps them from working is said before a run, and what fails in the middle does not end it.

Loggers are transformers' callbacks for wandb, tensorboard and others (--report_to).
"""

import logging
import os
import sys
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

import huggingface_hub
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

logger = logging.getLogger(__name__)

WITHOUT_LOGIN = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


def check(settings):
    """A line for everything that keeps the loggers and the hub of the flags from working, as far as this machine knows.

    Only the first of several processes talks to them, so the others find nothing.
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


def is_known(name):
    """Whether --report_to takes a name."""
    return name in ("none", "all", *INTEGRATION_TO_CALLBACK)


def unusable(name, logging_dir):
    """Why the logger of a name cannot be used here, or None."""
    if name == "none":
        return None
    if name == "wandb" and os.environ.get("WANDB_DISABLED", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "the environment variable WANDB_DISABLED forbids it; unset it, or leave wandb out"
    try:
        INTEGRATION_TO_CALLBACK[name]()
    except Exception as error:  # of the library, each has its own
        return one_line(error)
    if name == "wandb":
        return wandb_login()
    return blocked_folder(logging_dir) if name == "tensorboard" else None


def wandb_login():
    """Why wandb has no account to log to, or None; a terminal can still be asked for the key."""
    mode, cure = os.environ.get("WANDB_MODE", "online"), "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline"
    if mode in WITHOUT_LOGIN or (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    import wandb
    from wandb.sdk import wandb_setup

    try:
        if wandb_setup.singleton().settings.mode in WITHOUT_LOGIN:  # by a settings file
            return None
        is_logged_in = wandb.login(prompt=False, verify=False)
    except (AttributeError, TypeError):  # another release; what it says of the account comes when the training begins
        return None
    except Exception as error:
        return f"{one_line(error)}; {cure}"
    return None if is_logged_in else f"no account, and no terminal to ask for one; {cure}"


def blocked_folder(folder):
    """Why the folder of a log cannot be written, or None."""
    wanted = Path(folder or os.environ.get("TENSORBOARD_LOGGING_DIR") or ".").absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return None
    reason = "may not be written" if existing.is_dir() else "is not a folder"
    return f"{existing} {reason}; give another --logging_dir"


def check_hub(settings):
    """A line for everything that keeps --push_to_hub from working."""
    if not settings.push_to_hub:
        return []
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return ["--push_to_hub: HF_HUB_OFFLINE is set, so nothing can be sent; unset it, or leave the flag out"]
    if not (settings.hub_token or huggingface_hub.get_token()):
        return ["--push_to_hub needs a token: run `hf auth login`, or set HF_TOKEN; or leave the flag out"]
    return []


def one_line(error):
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


class GuardedLogger(TrainerCallback):
    """A logger whose failure ends no training: at the start it is a ValueError, later a warning and the end of it.

    callback: the logger, one of transformers'. name: that of --report_to.
    """

    def __init__(self, callback, name):
        self.callback, self._name, self._works = callback, name, True

    def _pass_on(self, event, args, state, control, **kwargs):
        if not self._works:
            return None
        try:
            return getattr(self.callback, event)(args, state, control, **kwargs)
        except Exception as error:  # of a library or its server, whatever that is
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
def warning(what):
    """Within this block, a failure becomes a warning that says what did not work."""
    try:
        yield
    except Exception as error:  # of a library or its server, whatever that is
        logger.warning("%s (%s); the training goes on without that", what, one_line(error))


for _event in [name for name in vars(TrainerCallback) if name.startswith("on_")]:
    setattr(GuardedLogger, _event, partialmethod(GuardedLogger._pass_on, _event))


def guard(callbacks):
    """Put a GuardedLogger around each logger in a list of callbacks."""
    names = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    for index, callback in enumerate(callbacks):
        if type(callback) in names:
            callbacks[index] = GuardedLogger(callback, names[type(callback)])
