"""`qwen-vl evaluate compare A B`: two runs on the same records, paired."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_vl.data.check.check import printable
from qwen_vl.evaluation import compare_text
from qwen_vl.evaluation.compare import compare

from .parsers import Parser


def main(argv: Sequence[str]) -> None:
    """Compare what the command line names, and print it."""
    args = _parser().parse_args(argv)
    found, notes = compare(Path(args.a), Path(args.b), anyway=args.anyway)
    print(printable("\n".join(compare_text.lines(found, notes))))
    if args.out:
        for path in compare_text.write(Path(args.out), args.a, args.b, found, notes):
            print(f"comparison: {path}", file=sys.stderr)


def _parser() -> Parser:
    parser = Parser(
        prog="qwen-vl evaluate compare",
        description="Compare two scored models, or two scored runs, on the same records: paired difference with its "
        "95% interval (clustered by image), exact McNemar test of right and wrong, records that changed.",
        allow_abbrev=False,
    )
    parser.add_argument("a", metavar="A", help="folder of a model in a results folder, or of one of its runs")
    parser.add_argument("b", metavar="B", help="the same for what is compared with it")
    parser.add_argument("--out", metavar="DIR", help="write compare.md and compare.json, with all changed records")
    parser.add_argument("--anyway", action="store_true", help="compare runs with other prompts or decoding, too")
    return parser
