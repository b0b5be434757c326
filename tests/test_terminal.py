"""Bars on a terminal and nowhere else, also while processes are forked; tables as text and as Markdown."""

import sys
import threading

import pytest
from helpers.terminals import on_terminal

from qwen_vl.data.process_map import chunked, process_map
from qwen_vl.terminal import Bars, markdown_table, progress, text_table

START_OF_LINE = "\r\x1b[2K"  # and erase the line
SHOW_CURSOR = "\x1b[?25h"


def noisy(chunk):
    """Return the sum of a chunk, after something that a worker may do."""
    print(f"worker {chunk[0]}", file=sys.stderr, flush=True)
    return sum(chunk)


def test_a_bar_is_one_line_that_changes():
    with on_terminal() as screen, Bars() as bars:
        bars.show("reading [x] :smile:", 3, 10, note="loss 0.5 [bold]" + "!" * 200)
        bars.write("a line [red] above: " + "x" * 150)
        bars.show("evaluating", 1)
        bars.drop("evaluating")
        bars.show("reading [x] :smile:", 10, 10)
        bars.close()
        bars.write("after it")
    before, *drawn = screen.text.split(START_OF_LINE)
    assert before.endswith(SHOW_CURSOR)  # all the time, as the process may be killed
    assert drawn[0].startswith("reading [x] :smile: ") and " 3/10 " in drawn[0]
    assert "loss 0.5 [bold]!!" in drawn[0] and drawn[0].rstrip().endswith("…") and len(drawn[0].strip()) <= 120
    above, below = next(text for text in drawn if "above" in text).split("\n")
    assert above == "a line [red] above: " + "x" * 150 and below.startswith("reading [x]")
    evaluating = [text for text in drawn if "evaluating" in text]
    assert evaluating and all(" 1/? " in text and "reading" not in text for text in evaluating)
    assert "\x1b[1A" not in screen.text  # up a line, where others may have printed
    assert " 10/10 " in drawn[-1] and drawn[-1].endswith(f"\n{SHOW_CURSOR}after it\n")


def test_a_bar_that_does_not_stay_is_erased_whatever_happens():
    with pytest.raises(KeyboardInterrupt), on_terminal() as screen, Bars(leave=False) as bars:
        bars.show("checking", 1, 2)
        raise KeyboardInterrupt
    assert screen.text.endswith("\x1b[2K")


@pytest.mark.parametrize("variable", [None, "FORCE_COLOR", "TTY_COMPATIBLE"])
def test_there_is_no_bar_off_a_terminal(monkeypatch, capsys, variable):
    if variable:
        monkeypatch.setenv(variable, "1")
    with Bars() as bars, progress("inner", 2) as advance:
        bars.show("outer", 1, 2, note="n")
        advance(2)
        bars.write("a line")
        assert not bars.shown
    assert capsys.readouterr() == ("", "a line\n")


@pytest.mark.parametrize(("hidden", "variables"), [(True, {}), (False, {"TERM": "dumb"})], ids=["hidden", "dumb"])
def test_a_terminal_may_have_no_bar(hidden, variables):
    with on_terminal(**variables) as screen, Bars(hidden=hidden) as bars:
        bars.show("x", 1, 2)
        bars.write("a line")
    assert screen.text == "a line\n"


def test_workers_are_forked_while_a_bar_is_shown():
    """They inherit no thread and no stream of the bar."""
    sums = []
    with on_terminal() as screen:
        stream, threads = sys.stderr, threading.active_count()
        with progress("adding", 200) as advance:
            assert sys.stderr is stream and threading.active_count() == threads
            for total in process_map(noisy, chunked(range(200), 10), workers=2):
                sums.append(total)
                advance(10)
    assert sum(sums) == sum(range(200))
    assert all(f"worker {first}\n" in screen.text for first in range(0, 200, 10))
    assert " 200/200 " in screen.text.split(START_OF_LINE)[-1]


def test_text_tables_align_what_is_seen():
    rows = [["name", "n", "last"], ["图片.json", "1,234", ""], ["a", "5", "long cell"]]
    assert text_table(rows) == ["name       n      last", "图片.json  1,234", "a          5      long cell"]
    assert text_table(rows, numbers=True) == [
        "name           n       last",
        "图片.json  1,234",
        "a              5  long cell",
    ]


def test_markdown_tables_hold_any_text():
    table = markdown_table(["", "n"], [["a|b", 1], ["two\r\nlines", ""]])
    assert table.split("\n") == ["| | n |", "| --- | --- |", "| a\\|b | 1 |", "| two<br>lines |  |"]
