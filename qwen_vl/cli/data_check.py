"""`qwen-vl data check`: every problem of conversation files, by record and field."""

import argparse
import contextlib
import json
import os
from collections.abc import Iterator, Sequence

from qwen_vl.data import skip_manifests
from qwen_vl.data.chatml import LOSS_ON, EncodeOptions
from qwen_vl.data.check import summary
from qwen_vl.data.check.check import Check, load_tokenizer, open_report, printable
from qwen_vl.data.check.cleaning import write_cleaned
from qwen_vl.data.check.summary import FileSummary
from qwen_vl.data.conversations import convert_hint, search_dirs
from qwen_vl.data.sources.locating import is_among
from qwen_vl.data.sources.opening import plain_name
from qwen_vl.data.validation import ERRORS, WARNINGS, DataError, Problem
from qwen_vl.startup import usable_cores
from qwen_vl.terminal import Bars

from .parsers import Parser, add_hub, name_models, positive

# ---- the command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> None:
    """Check the files and print what was found. Raise DataError (exit code 1) if there are errors."""
    args = parse(argv)
    tokenizer = load_tokenizer(args.model) if args.model else None
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(open_report(args.report)) if args.report else None
        bars = stack.enter_context(Bars(leave=False))
        check = Check(
            image_folder=args.image_folder,
            tokenizer=tokenizer,
            encoding=EncodeOptions(
                max_length=args.max_length, loss_on=args.loss_on, control_tokens=args.allow_control_tokens
            ),
            opens=args.pictures == "open",
            workers=args.workers,
            on_problem=lambda path, problem: report and report.write(as_line(path, problem)),
            progress=bars.show,
        )
        for path in args.files:
            check.file(path)
    print(printable("\n".join(lines(check, args))))
    if args.fix:
        fix(check.files[0], args.fix)
    finish(check.files)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments. Exit with code 2 if they are wrong."""
    parser = Parser(
        prog="qwen-vl data check",
        description="Check conversation files (docs/data.md): records, images, lengths, duplicates.",
        epilog="Exit code 0: nothing that would stop a run; 1: errors; 2: wrong arguments.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="JSON, JSON Lines, Parquet, Arrow, or a folder of them")
    add("--image_folder", metavar="DIR", help="where relative images are looked for after the file's own folder")
    add("--model", "--tokenizer", metavar="DIR", help="checkpoint whose tokenizer counts tokens; without it, lengths "
        "are left out")  # fmt: skip
    add("--max_length", "--model_max_length", type=positive, default=2048, help="most tokens of a sample (2048)")
    add("--allow_control_tokens", action="store_true", help="count markers such as <|im_end|> in texts as one token")
    add("--loss_on", choices=LOSS_ON, default="reference", help="which tokens count as targets, as in training")
    add("--pictures", choices=("open", "exist"), default="open", help="open every image once, or only look for files")
    add("--workers", type=positive, default=usable_cores(), help="processes (all processors: %(default)s)")
    add("--report", metavar="OUT.jsonl", help="write one JSON line for each problem")
    add("--fix", metavar="OUT.json", help="write the file without its bad records, and OUT.skip.json, which names them")
    add_hub(parser)
    args = parser.parse_args(argv)
    name_models(args, "model")
    if args.fix and len(args.files) > 1:
        parser.error("--fix takes one FILE; call it once for each")
    for option, out in (("--fix", args.fix), ("--report", args.report)):
        if out and os.path.realpath(out) in map(os.path.realpath, args.files):
            parser.error(f"{option} {out}: would overwrite the file that is checked; give another name")
        if out and any(is_among(out, path) for path in args.files):
            parser.error(f"{option} {out}: would be read as data of the folder that is checked; put it elsewhere")
    return args


def as_line(path: str, problem: Problem) -> str:
    """Return a Problem as a line of the report."""
    fields = {"file": path, "record": problem.place, "id": problem.id, "field": problem.field, "kind": problem.kind}
    fields |= {"level": "error" if problem.is_error else "warning", "message": problem.message}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def lines(check: Check, args: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the printed summary."""
    yield from summary.files_table(check.files)
    yield from summary.kinds_lines(check.files, {"the file"} | ERRORS, "errors")
    missing = [file.path for file in check.files if file.kinds["missing image"]]
    folders = dict.fromkeys(folder for path in missing for folder in search_dirs(path, args.image_folder))
    if folders:
        yield f"images were looked for in {', '.join(folders)}; correct the paths or give --image_folder"
    yield from filter(None, (convert_hint(file.path, file.formats, file.num_records) for file in check.files))
    yield from summary.kinds_lines(check.files, WARNINGS, "warnings")
    yield ""
    yield summary.images_line(check.images.values(), sum(file.num_images for file in check.files))
    if args.model:
        yield from summary.lengths_lines(check.files, args.max_length)
    else:
        yield "lengths: left out; give --model CHECKPOINT for them"


def fix(found: FileSummary, out: str) -> None:
    """Write the file without its bad records to `out`, with the skip manifest next to it, and say so."""
    if found.unusable:
        raise DataError(f"{found.path}: {found.unusable}; --fix only leaves out records")
    if len(found.bad) == found.num_records:
        raise DataError(f"{found.path}: no good record; --fix would leave nothing")
    manifest = plain_name(out).with_suffix(".skip.json")
    write_cleaned(found.path, out, found.bad)
    skip_manifests.write_manifest(found.path, manifest, found.bad)
    kept = found.num_records - len(found.bad)
    print(f"\n{out}: {kept:,} records; {manifest}: the {len(found.bad):,} that were left out (--skip_manifest)")
    folder = search_dirs(found.path)[0]
    if os.path.realpath(os.path.dirname(out)) != os.path.realpath(folder):
        folder = os.path.relpath(folder) if not os.path.isabs(found.path) else folder
        print(f"relative images were looked for beside {found.path}: use {out} with --image_folder {folder}")


def finish(files: Sequence[FileSummary]) -> None:
    """Print that there are no errors. Raise DataError if there are any."""
    errors = sum(count for file in files for kind, count in file.kinds.items() if kind not in WARNINGS)
    if errors:
        bad, num_records = sum(len(file.bad) for file in files), sum(file.num_records for file in files)
        message = f"{errors:,} error{'s' * (errors > 1)} in {bad:,} of {num_records:,} records"
        raise DataError(f"{message}; correct them, or leave the records out with --fix")
    print("\nno errors")
