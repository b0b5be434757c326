"""What the parsers of all verbs share: `--debug`, `--hub` and how a verb is chosen."""

import argparse
import math
import re
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from qwen_vl.hubs import names
from qwen_vl.training.flags.spelling import unknown_arguments

DEBUG = "--debug"  # read by `run`, which shows the traceback


class Parser(argparse.ArgumentParser):
    """A parser that takes `--debug`, as every verb does. Its subparsers take it as well."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Build it. The arguments are those of ArgumentParser."""
        super().__init__(*args, **options)
        self.add_argument(DEBUG, action="store_true", help="show the traceback of an error")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Return the parsed arguments. Exit with code 2, naming the closest flags, if one is unknown."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unknown_arguments(unknown, self._option_string_actions))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and the message alone: the usage of a verb with many flags would hide it."""
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` lists the options\n")


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


def add_hub(parser: argparse.ArgumentParser) -> None:
    """Add `--hub` and `--revision`, which `name_models` applies to the names of models."""
    add = parser.add_argument_group("hub").add_argument
    add(
        "--hub",
        choices=names.HUBS,
        help=f"hub of models that are given by name (default: ${names.VARIABLE}, else huggingface)",
    )
    add("--revision", metavar="REV", help="branch, tag or commit of the model on its hub; short for NAME@REV")


def name_models(args: argparse.Namespace, model: str, *others: str) -> None:
    """Give the names of models among the arguments the hub and the revision of the flags; folders stay as they are.

    model: the argument that --revision is of; any of them may be None or a list. Raise ValueError for a --revision
    without a name of a model on a hub.
    """
    for field in (model, *others):
        value, revision = getattr(args, field), args.revision if field == model else None
        given = value if isinstance(value, list) else [value]
        named = [one and names.full(one, hub=args.hub, revision=revision) for one in given]
        setattr(args, field, named if isinstance(value, list) else named[0])
    if args.revision and not getattr(args, model):
        raise ValueError(f"--revision {args.revision}: goes with the name of a model on a hub; give one")


def add_loading(parser: argparse._ActionsContainer) -> None:
    """Add the flags of how a model or an adapter is loaded."""
    from qwen_vl.checkpoint.dtypes import CHOICES  # imports torch, which this module does not

    add = parser.add_argument
    add("--device", help="cuda, cuda:1, cpu, .. (default: the GPU where there is one)")
    add("--dtype", default="auto", choices=CHOICES, help="dtype of the weights (default: the file's)")
    add("--base", help="folder or hub name of an adapter's base, if it has moved since training")
    add("--trust_base", action="store_true", help="use an adapter whose base cannot be identified")


def positive(text: str) -> int:
    """Return a whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: use a number above 0")
    return number


def number_of(text: str, *, kind: type[int] | type[float], may_be_zero: bool) -> float:
    """Return the number of a flag, for argparse."""
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (number == 0 and not may_be_zero):
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text}: use {what} {'of at least' if may_be_zero else 'above'} 0")
    return number


positive_float = partial(number_of, kind=float, may_be_zero=False)
not_negative = partial(number_of, kind=float, may_be_zero=True)


def file_size(text: str) -> str:
    """Return a size with its unit as it is, for argparse; huggingface_hub reads it."""
    if not re.fullmatch(r"\d*\.?\d+ *[TGMK]B", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text}: use a size such as 5GB or 500MB")
    return text


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


def words_of_original(argv: Sequence[str], *, prog: str, verb: str, fixed: Sequence[str] = ()) -> list[str]:
    """Return the words for `qwen-vl VERB` that do what the flags of a program of the original say.

    Further flags are those of the verb, and stay; they win over the `fixed` ones of the program.
    """
    parser = Parser(prog=prog, allow_abbrev=False, epilog=f"Takes the flags of `qwen-vl {verb}` as well.")
    parser.add_argument("-c", "--checkpoint-path", default="Qwen/Qwen-VL-Chat", help="folder or hub name of a model")
    parser.add_argument("--cpu-only", action="store_true", help="run on the CPU")
    parser.add_argument("--server-port", default="8000", help="port (default: %(default)s)")
    parser.add_argument("--server-name", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    args, others = parser.parse_known_args(argv)
    device = ["--device", "cpu"] if args.cpu_only else []
    return [args.checkpoint_path, "--host", args.server_name, "--port", args.server_port, *fixed, *device, *others]
