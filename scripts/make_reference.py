"""Write docs/reference.md: every command with every flag, from the parsers themselves.

    python scripts/make_reference.py

tests/test_reference.py compares the page with the parsers.
"""

import argparse
import contextlib
import dataclasses
import re
from pathlib import Path
from unittest import mock

import transformers

from qwen_vl.cli import data
from qwen_vl.cli import main as cli_main
from qwen_vl.terminal import markdown_table

PAGE = Path(__file__).resolve().parents[1] / "docs/reference.md"
HEAD = """# Every command and flag

This page is written from the parsers by `python scripts/make_reference.py`. `qwen-vl VERB --help` shows the same.
Every command also takes `--debug`, which shows the traceback of an error.
"""
OF_TRANSFORMERS = """
These flags are transformers' own, of its
[TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments).
A run stops at once and says so if one of them does not apply to this model.
"""
INNER = {"data": tuple(data.VERBS), "checkpoint": ("show", "export"), "evaluate": ("", "compare")}


def parser_of(words):
    """Return the parser that shows its help for `qwen-vl WORDS --help`."""
    found = []
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda self, file=None: found.append(self)),
        contextlib.suppress(SystemExit),
    ):
        cli_main.main([*words, "--help"])
    return found[-1]


def name_of(action):
    """Return how an argument is written, as code."""
    values = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
    values = " ".join(values) if isinstance(values, tuple) else values
    if action.choices and action.metavar is None:
        values = "|".join(str(choice) for choice in action.choices)
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    more = " .." if action.nargs in ("+", "*") else ""
    twins = {f"--{flag[2:].replace('_', '-')}" for flag in action.option_strings if "_" in flag}  # of HfArgumentParser
    flags = [flag for flag in action.option_strings if flag not in twins]
    return f"`{', '.join(flags)}{' ' + values if values else ''}{more}`"


def row(action, parser, *, short=False):
    """Return the cells of one argument. short: the first sentence of its help alone."""
    text = action.help or ""
    if "%(" in text:
        text = parser._get_formatter()._expand_help(action)
    text = " ".join(text.split())
    if short:
        text = re.split(r"(?<=[a-z)`])\.(?: |$)", text)[0]
    elif action.default not in (None, argparse.SUPPRESS, False, "") and action.option_strings and "default" not in text:
        text = f"{text} (default: {action.default})"
    return name_of(action), re.sub(r"([<*])", r"\\\1", text)


def table(actions, parser, *, short=False):
    """Return a table of arguments; empty if there are none."""
    rows = [row(action, parser, short=short) for action in actions]
    return markdown_table(["argument", "meaning"], rows) + "\n" if rows else ""


def section(words):
    """Return the section of one command."""
    parser = parser_of(words)
    actions = [
        action
        for action in parser._actions
        if action.dest not in ("help", "debug", "debug_traceback") and action.help != argparse.SUPPRESS
    ]
    about = "" if words == ["train"] else f"{(parser.description or '').strip()}\n\n"
    theirs = {field.name for field in dataclasses.fields(transformers.TrainingArguments)} if words == ["train"] else ()
    ours = table([action for action in actions if action.dest not in theirs], parser)
    title = f"## qwen-vl {' '.join(words)}\n\n{about}"
    if not theirs:
        return title + ours
    own = {action.dest for action in actions if action.dest in theirs}
    rest = table([action for action in actions if action.dest in own], parser, short=True)
    text = (
        "`python finetune.py` is the same command. A YAML file may come first; its keys are flags without dashes.\n\n"
    )
    return f"{title}{text}{ours}{OF_TRANSFORMERS}\n{rest}"


def commands():
    """Return the words of every command, in the order in which `qwen-vl --help` lists them."""
    return [[verb, *([inner] if inner else [])] for verb in cli_main.VERBS for inner in INNER.get(verb, ("",))]


def page():
    """Return the whole page."""
    return "\n".join([HEAD, *(section(words) for words in commands())]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
