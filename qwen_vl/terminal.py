"""Progress bars and tables of all commands: the only importer of rich."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

SECONDS_BETWEEN_DRAWINGS = 0.1
BAR_WIDTH = 20


class Bars:
    """One line on stderr with the bar that moved last. Shown on a terminal only, from the first `show` to `close`.

    Safe if processes are forked meanwhile. No thread draws, so a worker inherits no locked lock. Nothing replaces
    sys.stdout and sys.stderr, so a worker cannot draw. The display stays one line: other output moves the cursor, and
    a second line would be drawn over it.
    """

    def __init__(self, *, hidden: bool = False, leave: bool = True) -> None:
        """Build the display. hidden: show nothing on a terminal either. leave: keep the last state on `close`."""
        console = Console(stderr=True)
        # Rich also treats a pipe as a terminal if FORCE_COLOR is set.
        self.shown = not hidden and sys.stderr.isatty() and console.is_interactive
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            auto_refresh=False,
            expand=True,  # so that only a long note is cut
            transient=not leave,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks: dict[str, TaskID] = {}  # by name
        self._current: str | None = None
        self._drawn = 0.0

    def __enter__(self) -> "Bars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def show(self, name: str, num_done: int, num_all: int | None = None, *, note: str | None = None) -> None:
        """Move the bar of this name, which replaces any other. num_all: None if unknown.

        note: a text at the end of the line, kept until the next one.
        """
        if not self.shown:
            return
        if not self._progress.live.is_started:
            self._progress.start()
            self._progress.console.show_cursor(True)  # rich hides it, and a killed process would leave it so
        is_new, self._current = name != self._current, name
        for other, task in self._tasks.items() if is_new else ():
            self._progress.update(task, visible=other == name)
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, completed=num_done, total=num_all, note=note or "")
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._progress.update(self._tasks[name], completed=num_done, total=num_all, **fields)
        now = time.monotonic()
        if is_new or note is not None or now - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
            self._progress.refresh()
            self._drawn = now

    def drop(self, name: str) -> None:
        """Forget the bar of this name; a later `show` starts another."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def write(self, line: str) -> None:
        """Print a line on stderr, above the bar if one is shown."""
        if self.shown:
            self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr)

    def close(self) -> None:
        """End the line; safe to call at any time."""
        if self._progress.live.is_started:
            self._progress.stop()
        self.shown = False


@contextmanager
def progress(name: str, num_all: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar by a number of steps. The bar shows, on a terminal, while the block runs."""
    num_done = 0
    with Bars() as bars:

        def advance(count: int = 1) -> None:
            nonlocal num_done
            num_done += count
            bars.show(name, num_done, num_all)

        bars.show(name, 0, num_all)
        yield advance


def text_table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Return the lines of a table with aligned columns. numbers: align all columns but the first to the right."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))  # on screen, a Chinese character takes two columns
            padded.append(space + cell if numbers and index else cell + space)
        lines.append("  ".join(padded).rstrip())
    return lines


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. In each cell `|` is escaped and a line break becomes <br>."""
    heading = "|" + "".join(f" {cell} |" if cell else " |" for cell in map(_cell, head))
    lines = ["| " + " | ".join(map(_cell, line)) + " |" for line in (["---"] * len(head), *rows)]
    return "\n".join([heading, *lines])


def _cell(content: object) -> str:
    """Return the Markdown of one cell."""
    return re.sub(r"\r\n?|\n", "<br>", str(content).replace("|", "\\|"))
