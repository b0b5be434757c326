"""The command `qwen-vl data`: one verb for each thing to do with conversation files."""

import argparse
from importlib import import_module

VERBS = {  # verb: (module whose main(argv) does it, what it does)
    "check": ("qwen_vl.cli.data_check", "find everything wrong with conversation files before a run does"),
    "preview": ("qwen_vl.cli.data_preview", "a page that shows conversations as they are trained on, token by token"),
    "cache": ("qwen_vl.cli.data_cache", "encode all pictures with a frozen vision tower, before training"),
    "convert": ("qwen_vl.cli.data_convert", "other formats to conversation files, and back"),
}


def main(argv):
    """Hand the arguments behind the verb to its module; without a known verb exits with code 2."""
    verbs = "\n".join(f"  {verb:9}{text}" for verb, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="qwen-vl data",
        description=f"Look at, check and convert conversation files (data/README.md).\n\n{verbs}",
        epilog="`qwen-vl data VERB --help` lists the options of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="qwen-vl data [-h] VERB ..",
    )
    parser.add_argument("verb", metavar="VERB", choices=VERBS, help="one of the above")
    verb = parser.parse_args(argv[:1]).verb
    module, _ = VERBS[verb]
    import_module(module).main(argv[1:])
