"""The command `qwen-vl`: one verb for each thing to do."""

from collections.abc import Sequence
from importlib import metadata

from .parsers import Verbs
from .run import run

VERBS = {  # verb: (module whose main(argv) does it, what it does)
    "plan": ("qwen_vl.cli.plan", "memory and time of a training run before it starts, and what fits"),
    "train": ("finetune", "fine-tune a checkpoint on conversations with images"),
    "data": ("qwen_vl.cli.data", "check, look at and convert conversation files"),
    "merge": ("qwen_vl.cli.merge", "merge a LoRA adapter into its base: one standalone checkpoint"),
    "export": ("qwen_vl.cli.export", "write a standalone model with a model card"),
    "quantize": ("qwen_vl.cli.quantize", "store the decoder of a checkpoint in 4 bits"),
    "verify": ("qwen_vl.cli.verify", "compare two models: logits, greedy answers, files"),
    "evaluate": ("qwen_vl.cli.evaluate", "benchmarks and held-out data: answer, score, report"),
    "checkpoint": ("qwen_vl.cli.checkpoint", "show a checkpoint of a run, or export its model or adapter"),
    "push": ("qwen_vl.cli.push", "upload a model or an adapter to Hugging Face or ModelScope"),
    "chat": ("qwen_vl.cli.chat", "chat with a checkpoint or an adapter in the terminal"),
    "serve": ("qwen_vl.cli.serve", "a server with the protocol of OpenAI, for many clients at once"),
    "demo": ("qwen_vl.cli.demo", "a web page to try a model: images, boxes, corrections"),
}


def entry(argv: Sequence[str] | None = None) -> None:
    """Run `qwen-vl VERB ..` and end the process as every command of this project does."""
    run(main, argv)


def main(argv: Sequence[str]) -> None:
    """Do what the command line says. Exit with code 2 if its first word is not a verb."""
    verbs = Verbs("qwen-vl", "Fine-tune, export, evaluate and serve Qwen-VL checkpoints.", VERBS)
    verbs.parser.usage = "qwen-vl [-h] [--version] VERB .."
    verbs.parser.add_argument("--version", action="version", version=f"qwen-vl {version()}")
    verbs.main(argv)


def version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("qwen-vl")
    except metadata.PackageNotFoundError:
        return "(not installed, run from its folder)"
