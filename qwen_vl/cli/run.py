"""How every command of this project runs: set up first; a clear line on failure, a traceback only on request."""

import atexit
import errno
import os
import sys
from collections.abc import Callable, Sequence

from qwen_vl.startup import prepare

from .parsers import DEBUG

# Libraries that talk to a service. Their errors come from accounts and networks, not from bugs in this program.
SERVICES = (
    *("wandb", "huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3", "tensorboard", "tensorboardX"),
    *("mlflow", "comet_ml", "clearml", "neptune", "swanlab", "trackio", "dvclive", "codecarbon", "azureml", "dagshub"),
    "modelscope_hub",
)


def run(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Call `main(argv)`. What the user can fix (ValueError, OSError, SERVICES) becomes one message and exit code 1.

    With `--debug` among the arguments the traceback is shown. An interrupt exits with 130, a usage error with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare(arguments)
    try:
        main(arguments)
    except Exception as error:
        if DEBUG in arguments or not is_mendable(error):
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        leave(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        leave(130)
    except SystemExit as end:
        if isinstance(end.code, int):
            leave(end.code, together=True)
        raise
    leave(0, together=True)


def is_mendable(error: BaseException) -> bool:
    """Return whether the user can act on an exception. Others are bugs of this program and need their traceback."""
    return isinstance(error, (ValueError, OSError, ImportError)) or is_of_service(error)


def is_of_service(error: BaseException) -> bool:
    """Return whether an exception comes from one of SERVICES."""
    return any(kind.__module__.partition(".")[0] in SERVICES for kind in type(error).__mro__)


def leave(code: int, together: bool = False) -> None:
    """End the process with an exit code. Return if it is 0 and the run has no other processes.

    together: whether all ranks end now, so the process group can be destroyed and pending messages arrive. A rank of
    several runs the `atexit` functions but skips the rest of Python's shutdown: a gloo thread that frees a tensor
    during it sometimes aborts the process ("terminate called without an active exception").
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        if together:
            distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def message(error: BaseException) -> str:
    """Return what an error says to a user, without the traceback that a data worker wraps around it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        cure = "; free some space, or use another folder" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}{cure}"
    text, name = str(error).strip(), type(error).__name__
    if is_of_service(error):  # of several lines often
        text = " ".join(text.split())
    return text.rpartition(f"{name}: ")[2] if "Original Traceback" in text else text or name
