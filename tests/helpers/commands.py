"""Commands inside the test process."""

from qwen_vl.cli import main


def exit_code(argv):
    """Return the exit code of `qwen-vl argv`; 0 if it just returns."""
    try:
        main.entry([str(argument) for argument in argv])
    except SystemExit as end:
        return end.code or 0
    return 0
