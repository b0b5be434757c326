"""What commands show while they work, and how they print tables: the only user of a library for either."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_DRAWINGS = 0.1
BAR_WIDTH = 20


class Bars:
    """One line on stderr with the bar that moved last. Shown on a terminal only, from the first `show` to `close`.

    Safe where processes are forked meanwhile: no thread draws, whose lock a worker would inherit as locked, and nothing
    replaces sys.stdout and sys.stderr, through which a worker would draw. Stays one line, since what others print
    meanwhile moves the cursor, and a second line would be drawn over it.
    """

    def __init__(self, *, hidden: bool = False, leave: bool = True) -> None:
        """hidden: show nothing on a terminal either. leave: whether the last state stays there after `close`."""
        console = Console(stderr=True)
        # Rich also takes a pipe for a terminal, if FORCE_COLOR is set.
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
            expand=True,  # so that a long note is cut, and nothing else
            transient=not leave,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._tasks = {}  # by name
        self._current, self._drawn = None, 0.0

    def __enter__(self) -> "Bars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def show(self, name: str, num_done: int, num_all: int | None = None, *, note: str | None = None) -> None:
        """Move the bar of this name, which takes the place of any other. num_all: None if it is not known.

        note: a text at the end of the line, which stays until there is another.
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
        fields = {} if note is None else {"note": note}
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
        """Print a line on stderr, above the bar where there is one."""
        if self.shown:
            self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr)

    def close(self) -> None:
        """End the line, whatever happened."""
        if self._progress.live.is_started:
            self._progress.stop()
        self.shown = False


@contextmanager
def progress(name: str, num_all: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a bar by so many steps. The bar is there while the block runs, on a terminal only."""
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
            space = " " * (width - cell_len(cell))  # on screen, where a Chinese character takes two columns
            padded.append(space + cell if numbers and index else cell + space)
        lines.append("  ".join(padded).rstrip())
    return lines


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. Cells may hold anything: `|` is escaped, and a line break becomes <br>."""
    heading = "|" + "".join(f" {cell} |" if cell else " |" for cell in map(_cell, head))
    lines = ["| " + " | ".join(map(_cell, line)) + " |" for line in (["---"] * len(head), *rows)]
    return "\n".join([heading, *lines])


def _cell(content: object) -> str:
    return re.sub(r"\r\n?|\n", "<br>", str(content).replace("|", "\\|"))
