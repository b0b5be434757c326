"""The web page under the name and with the flags of the original; `qwen-vl demo` does the work."""

from collections.abc import Sequence

from qwen_vl.cli.run import run


def main(argv: Sequence[str]) -> None:
    """Serve the page as the original's flags say; further flags go to `qwen-vl demo`."""
    from qwen_vl.cli import demo
    from qwen_vl.cli.parsers import words_of_original

    demo.main(words_of_original(argv, prog="web_demo_mm.py", verb="demo"))


if __name__ == "__main__":
    run(main)
