"""The server under the name and with the flags and rules of the original; `qwen-vl serve` does the work."""

from collections.abc import Sequence

from qwen_vl.cli.run import run


def main(argv: Sequence[str]) -> None:
    """Serve as the original's flags say; further flags go to `qwen-vl serve`."""
    from qwen_vl.cli import serve
    from qwen_vl.cli.parsers import words_of_original

    name = ["--served_model_name", "gpt-3.5-turbo"]
    serve.main(words_of_original(argv, prog="openai_api.py", verb="serve", fixed=name), as_original=True)


if __name__ == "__main__":
    run(main)
