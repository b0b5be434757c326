"""What the parsers of all verbs share: `--debug`, and how a verb is chosen."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

DEBUG = "--debug"  # read by `run`, which shows the traceback


class Parser(argparse.ArgumentParser):
    """A parser that takes `--debug`, as every verb does. Its subparsers take it as well."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Build it. The arguments are those of ArgumentParser."""
        super().__init__(*args, **options)
        self.add_argument(DEBUG, action="store_true", help="show the traceback of an error")


class Verbs:
    """A command that consists of verbs, each done by `main(argv)` of a module, which is imported when it is chosen."""

    def __init__(self, prog: str, description: str, verbs: dict[str, tuple[str, str]]) -> None:
        """Build the parser. verbs: {verb: (module, what it does)}."""
        width = max(map(len, verbs)) + 4
        lines = "\n".join(f"  {verb:{width}}{text}" for verb, (_, text) in verbs.items())
        self._verbs = verbs
        self.parser = Parser(
            prog=prog,
            description=f"{description}\n\n{lines}",
            epilog=f"`{prog} VERB --help` lists the options of a verb.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.add_argument("verb", metavar="VERB", choices=verbs, help="one of the above")

    def main(self, argv: Sequence[str]) -> None:
        """Pass the arguments that follow the verb to its module. Exit with code 2 if there is no known verb."""
        position = next((i for i, word in enumerate(argv) if word != DEBUG), len(argv))
        verb = self.parser.parse_args(argv[: position + 1]).verb
        # A leading --debug goes to the verb, which has the same one.
        words = [*argv[position + 1 :], *argv[:position]]
        module, _ = self._verbs[verb]
        import_module(module).main(words)


def positive(text: str) -> int:
    """Return a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: use a number above 0")
    return number


def by_name(flag: str, words: Sequence[str]) -> dict[str, str]:
    """Return {name: folder} of a flag's words `name=folder`. Raise ValueError for other words and repeated names."""
    found: dict[str, str] = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not name or not folder:
            raise ValueError(f"{flag} {word}: use name=folder")
        if name in found:
            raise ValueError(f"{flag} {word}: the name {name} is given twice; use another")
        found[name] = folder
    return found
