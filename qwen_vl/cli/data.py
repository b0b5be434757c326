"""The command `qwen-vl data`: one verb for each thing to do with conversation files."""

from collections.abc import Sequence

from .parsers import Verbs

VERBS = {  # verb: (module whose main(argv) does it, what it does)
    "check": ("qwen_vl.cli.data_check", "find everything wrong with conversation files before a run does"),
    "preview": ("qwen_vl.cli.data_preview", "a page that shows conversations as they are trained on, token by token"),
    "cache": ("qwen_vl.cli.data_cache", "encode all images with a frozen vision tower, before training"),
    "convert": ("qwen_vl.cli.data_convert", "other formats to conversation files, and back"),
}


def main(argv: Sequence[str]) -> None:
    """Do what the command line says. Exit with code 2 if its first word is not a verb."""
    verbs = Verbs("qwen-vl data", "Look at, check and convert conversation files (docs/data.md).", VERBS)
    verbs.parser.usage = "qwen-vl data [-h] VERB .."
    verbs.main(argv)
