"""`qwen-vl data convert`: other formats to conversation files, and back."""

import os
from collections.abc import Sequence

from qwen_vl.data.check.check import printable
from qwen_vl.data.convert.convert import FORMATS, _json, convert
from qwen_vl.data.sources.locating import is_among
from qwen_vl.data.sources.opening import plain_name
from qwen_vl.files import whole_file

from .parsers import Parser

# ---- the command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    """Convert the file that the command line names, and print the result."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.source_format == arguments.target_format:
        parser.error("--from and --to are the same")
    if os.path.realpath(arguments.source) == os.path.realpath(arguments.out):
        parser.error(f"OUT {arguments.out}: would overwrite SOURCE; give another name")
    if is_among(arguments.out, arguments.source):
        parser.error(f"OUT {arguments.out}: would be read as data of the folder SOURCE; put it elsewhere")
    if plain_name(arguments.out).suffix in (".parquet", ".arrow"):
        parser.error(f"OUT {arguments.out}: JSON is written; name it .json or .jsonl")
    if arguments.target_format == "coco" and plain_name(arguments.out).suffix == ".jsonl":
        parser.error("OUT: COCO's annotations are one JSON object; name it .json")
    if arguments.prompt is not None and "{phrase}" not in arguments.prompt:
        parser.error('--prompt: put {phrase} where the phrase belongs, as in "Where is {phrase}?"')
    source, out = arguments.source, arguments.out
    result = convert(
        source,
        out,
        source_format=arguments.source_format,
        target_format=arguments.target_format,
        image_folder=arguments.image_folder,
        check_images=arguments.pictures == "exist",
        skip_errors=arguments.skip_errors,
        prompt=arguments.prompt,
        box_format=arguments.box_format,
    )
    unit = "boxes" if arguments.target_format == "coco" else "records"
    print(printable(f"{out}: {result.num_written:,} {unit} from {result.num_read:,} records of {source}"))
    for note, count in result.notes.most_common():
        print(printable(f"  {note} ({count:,} times)"))
    if result.problems:
        skipped = f"{out}.skipped.jsonl"
        with whole_file(skipped) as file:
            for problem in result.problems:
                line = {"file": source, "record": problem.place, "id": problem.id, "field": problem.field}
                line |= {"kind": problem.kind, "message": problem.message}
                file.write(_json(line) + b"\n")
        print(printable(f"  {len(result.problems):,} problems, whose records were skipped: {skipped}"))


def _parser() -> Parser:
    parser = Parser(
        prog="qwen-vl data convert",
        description="Convert a file to the conversation format (docs/data.md), or from it to another one.",
        epilog="SOURCE is JSON, JSON Lines, Parquet, Arrow or a folder of them; OUT a JSON list, or JSON Lines if it "
        "ends with .jsonl. The format coco is one JSON object. Both may be packed (.gz, .zst).",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE")
    add("out", metavar="OUT")
    add("--from", dest="source_format", choices=FORMATS, required=True, help="format of SOURCE")
    add("--to", dest="target_format", choices=FORMATS, default="ours", help="format of OUT (default: ours)")
    add("--image_folder", metavar="DIR", help="where relative images are looked for, after the folder of OUT")
    add("--pictures", choices=("exist", "any"), default="exist", help="whether local images must exist (default)")
    add("--prompt", metavar="TEXT", help='question for coco and refcoco, such as "框出图中的{phrase}"')
    add("--box_format", choices=("xywh", "xyxy"), default="xywh", help="of refcoco boxes in pixels (default: xywh)")
    add("--skip_errors", action="store_true", help="skip records that cannot be converted, and list them next to OUT")
    return parser
