"""The command `qwen-vl`: one verb for each thing to do."""

import argparse
from importlib import import_module, metadata

from .run import run

VERBS = {  # verb: (module whose main(argv) does it, what it does)
    "plan": ("qwen_vl.cli.plan", "memory and time of a training run before it starts, and what fits"),
    "train": ("finetune", "fine-tune a checkpoint on conversations with pictures"),
    "data": ("qwen_vl.cli.data", "check, look at and convert conversation files"),
    "merge": ("qwen_vl.cli.merge", "merge a LoRA adapter into its base: one standalone checkpoint"),
    "export": ("qwen_vl.cli.export", "write a standalone model with a model card"),
    "quantize": ("qwen_vl.cli.quantize", "store the decoder of a checkpoint in 4 bits"),
    "verify": ("qwen_vl.cli.verify", "compare two models: logits, greedy answers, files"),
    "checkpoint": ("qwen_vl.cli.checkpoint", "show a checkpoint of a run, or export its model or adapter"),
    "chat": ("qwen_vl.cli.chat", "chat with a checkpoint or an adapter in the terminal"),
}


def entry(argv=None):
    """Run `qwen-vl VERB ..`; ends the process as every command of this project does."""
    run(main, argv)


def main(argv):
    """Hand the arguments behind the verb to its module; without a known verb exits with code 2."""
    verbs = "\n".join(f"  {verb:12}{text}" for verb, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="qwen-vl",
        description=f"Fine-tune, export and chat with Qwen-VL checkpoints.\n\n{verbs}",
        epilog="`qwen-vl VERB --help` lists the options of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="qwen-vl [-h] [--version] VERB ..",
    )
    parser.add_argument("--version", action="version", version=f"qwen-vl {version()}")
    parser.add_argument("verb", metavar="VERB", choices=VERBS, help="one of the above")
    verb = parser.parse_args(argv[:1]).verb
    module, _ = VERBS[verb]
    import_module(module).main(argv[1:])


def version():
    """The version of the installed package."""
    try:
        return metadata.version("qwen-vl")
    except metadata.PackageNotFoundError:
        return "(not installed, run from its folder)"


if __name__ == "__main__":
    entry()
