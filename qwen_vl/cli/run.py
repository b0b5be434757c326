"""How every command of this project runs: set up first; a clear line on failure, a traceback only on request."""

import atexit
import os
import sys

from qwen_vl.startup import prepare

# Libraries that talk to a service: what they raise is a matter of accounts and networks, and no error in a program.
SERVICES = (
    *("wandb", "huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3", "tensorboard", "tensorboardX"),
    *("mlflow", "comet_ml", "clearml", "neptune", "swanlab", "trackio", "dvclive", "codecarbon", "azureml", "dagshub"),
)


def run(main, argv=None):
    """Call `main(argv)`; what the user can mend (ValueError, OSError, SERVICES) becomes one message and exit code 1.

    With `--debug` among the arguments the traceback is shown. Interrupts exit with 130, argparse's usage errors with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare(arguments)
    try:
        main(arguments)
    except Exception as error:
        if "--debug" in arguments or not is_mendable(error):
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


def is_mendable(error):
    """Whether an exception tells a user something, where others are errors of this program and need their traceback."""
    return isinstance(error, (ValueError, OSError, ImportError)) or is_of_service(error)


def is_of_service(error):
    """Whether an exception comes from one of SERVICES."""
    return any(kind.__module__.partition(".")[0] in SERVICES for kind in type(error).__mro__)


def leave(code, together=False):
    """End the process with an exit code; returns if that is 0 and the process is not one of several of a run.

    together: whether all of several end so; what they sent last then arrives. One of several leaves out Python's own
    end, but for what is registered in `atexit`: a thread of gloo that lets go of a tensor meanwhile would abort the
    process ("terminate called without an active exception"), now and then.
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


def message(error):
    """What an error says to a user, without the traceback that a data worker wraps around it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    text, name = str(error).strip(), type(error).__name__
    if is_of_service(error):  # of several lines often
        text = " ".join(text.split())
    return text.rpartition(f"{name}: ")[2] if "Original Traceback" in text else text or name
