"""How every command of this project ends: a clear line on failure, the right exit code, a traceback only on request."""

import sys


def run(main, argv=None):
    """Call `main(argv)`; what the user can mend (ValueError, OSError) becomes one message and exit code 1.

    With `--debug` among the arguments the traceback is shown. Interrupts exit with 130, argparse's usage errors with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        main(arguments)
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in arguments:
            raise
        print(f"error: {message(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def message(error):
    """What an error says to a user, without the traceback that a data worker wraps around it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    text, name = str(error).strip(), type(error).__name__
    return text.rpartition(f"{name}: ")[2] if "Original Traceback" in text else text or name
