"""A terminal for tests, which receives what is written to stderr."""

import os
import pty
import sys
import threading
from contextlib import contextmanager

import pytest


class Screen:
    """The output that a terminal received; `text` is complete when the block is over."""

    text = ""


@contextmanager
def on_terminal(**variables):
    """Make stderr a terminal of 120 columns within this block. Yield its Screen. variables: of the environment."""
    main, other = pty.openpty()
    screen, received = Screen(), bytearray()

    def read():  # all the time, because a terminal that is not read blocks its writers
        try:
            while chunk := os.read(main, 4096):
                received.extend(chunk)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with pytest.MonkeyPatch.context() as patch, open(other, "w", encoding="utf-8") as file:
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"} | variables).items():
            patch.setenv(name, value)
        patch.setattr(sys, "stderr", file)
        try:
            yield screen
        finally:
            file.close()
            reader.join(timeout=10)
            os.close(main)
            screen.text = received.decode("utf-8").replace("\r\n", "\n")
