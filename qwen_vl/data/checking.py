"""`qwen-vl data check`: everything wrong with conversation files, found before a run does."""

import argparse
import contextlib
import json
import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import markup, skipping, summary
from .chatml import LOSS_ON
from .cleaning import write_cleaned
from .conversations import check_folder, convert_hint, entries, is_repeated, search_dirs
from .inspection import Inspector
from .opening import plain_name
from .parallel import chunked, default_workers, process_map
from .shards import is_among
from .validation import ERRORS, WARNINGS, DataError, Problem

RECORDS_A_CHUNK, PICTURES_A_CHUNK = 256, 32


class Check:
    """Files one after the other; `files` has the FileSummary of each, `pictures` every Picture by its key.

    tokenizer: None to leave out lengths. opens: whether pictures are opened. on_problem(path, problem) is called for
    each Problem, progress(text, num_done, num_all or None) now and then; options are those of `chatml.encode`.
    """

    def __init__(
        self,
        *,
        image_folder=None,
        tokenizer=None,
        max_length=2048,
        opens=True,
        workers=1,
        on_problem=lambda path, problem: None,
        progress=lambda text, num_done, num_all: None,
        **options,
    ):
        check_folder(image_folder)
        self.image_folder, self.opens, self.workers = image_folder, opens, workers
        self._settings = {"tokenizer": tokenizer, "max_length": max_length, "opens": opens, **options}
        self._on_problem, self._progress = on_problem, progress
        self._digests, self.pictures, self.files = {}, {}, []

    def file(self, path):
        """The FileSummary of one file, whatever is wrong with it."""
        found = summary.FileSummary(path)
        self.files.append(found)
        inspector = Inspector(path, search_dirs(path, self.image_folder), **self._settings)
        try:
            uses = self._records(found, inspector)
        except (DataError, OSError) as error:
            self._add(found, Problem("", None, "", "the file", _without_path(error, path)))
            return found
        if self.opens:
            self._pictures(found, inspector, uses)
        return found

    def _records(self, found, inspector):
        """Check every record; {key: [(place, id, field), ..]} of the pictures that they use."""
        uses, ids, images = {}, set(), markup.ImageCount()
        chunks = chunked(entries(found.path), RECORDS_A_CHUNK)
        for chunk in process_map(inspector.records, chunks, workers=self.workers):
            for inspected in chunk:
                found.add(inspected)
                images.add(inspected.images)
                self.pictures.update(inspected.opened)
                for problem in (*inspected.problems, *self._repeated(found, inspected, ids)):
                    self._add(found, problem, inspected.id)
                for field, key in dict.fromkeys(inspected.uses):  # once, however often a turn shows it
                    uses.setdefault(key, []).append((inspected.place, inspected.id, field))
            self._progress(f"{found.name}: records", found.num_records, None)
        lost = images.error()
        if lost:
            self._add(found, Problem("", None, "", "the file", lost))
        return uses

    def _repeated(self, found, inspected, ids):
        """Yields the Problems of a record that has the id or the turns of an earlier one."""
        place, name, digest = inspected.place, inspected.id, inspected.digest
        if is_repeated(name, ids):
            yield Problem(place, name, "id", "same id", "the id of an earlier record")
        if digest:
            first = self._digests.setdefault(digest, (found.name, place))
            if first != (found.name, place):
                yield Problem(place, name, "conversations", "same conversation", f"the same turns as {''.join(first)}")

    def _pictures(self, found, inspector, uses):
        """Open the pictures that were not seen before, and tell every record about its own."""
        unseen = [key for key in uses if key not in self.pictures]
        chunks, num_done = list(chunked(unseen, PICTURES_A_CHUNK)), 0
        for chunk, pictures in zip(chunks, process_map(inspector.pictures, chunks, workers=self.workers), strict=True):
            self.pictures.update(zip(chunk, pictures, strict=True))
            num_done += len(chunk)
            self._progress(f"{found.name}: pictures", num_done, len(unseen))
        for key, places in uses.items():
            for kind, message in self.pictures[key].problems:
                for place, name, field in places:
                    text = message if kind == "broken picture" else f"picture {key}: {message}"
                    self._add(found, Problem(place, name, field, kind, text), name)

    def _add(self, found, problem, own_id=None):
        found.add_problem(problem, own_id)
        self._on_problem(found.path, problem)


def _without_path(error, path):
    """What an error says about a file, without its name in front."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error).removeprefix(f"{path}: ")


# ---- the command ----------------------------------------------------------------------------------------------------


def main(argv):
    """Check the files, print what was found; DataError (exit code 1) where there are errors."""
    args = parse(argv)
    tokenizer = load_tokenizer(args.model) if args.model else None
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(open_report(args.report)) if args.report else None
        progress = stack.enter_context(Bar())
        check = Check(
            image_folder=args.image_folder,
            tokenizer=tokenizer,
            max_length=args.max_length,
            opens=args.pictures == "open",
            workers=args.workers,
            on_problem=lambda path, problem: report and report.write(as_line(path, problem)),
            progress=progress,
            control_tokens=args.allow_control_tokens,
            loss_on=args.loss_on,
        )
        for path in args.files:
            check.file(path)
    print(printable("\n".join(lines(check, args))))
    if args.fix:
        fix(check.files[0], args.fix)
    finish(check.files)


def parse(argv):
    """The arguments; what is wrong with them exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="qwen-vl data check",
        description="Check conversation files (data/README.md): records, pictures, lengths, duplicates.",
        epilog="Exit code 0: nothing that would stop a run; 1: errors; 2: wrong arguments.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="JSON, JSON Lines, Parquet, Arrow, or a folder of them")
    add("--image_folder", metavar="DIR", help="where relative pictures are looked for after the file's own folder")
    add("--model", "--tokenizer", metavar="DIR", help="checkpoint (or its tokenizer) that counts tokens; without it, "
        "lengths are left out")  # fmt: skip
    add("--max_length", "--model_max_length", type=positive, default=2048, help="most tokens of a sample (2048)")
    add("--allow_control_tokens", action="store_true", help="count markers such as <|im_end|> in texts as one token")
    add("--loss_on", choices=LOSS_ON, default="reference", help="which tokens count as learned, as in training")
    add("--pictures", choices=("open", "exist"), default="open", help="open every picture once, or only look for files")
    add("--workers", type=positive, default=default_workers(), help="processes (all processors: %(default)s)")
    add("--report", metavar="OUT.jsonl", help="write one JSON line for each problem")
    add("--fix", metavar="OUT.json", help="write the file without its bad records, and OUT.skip.json, which names them")
    args = parser.parse_args(argv)
    if args.fix and len(args.files) > 1:
        parser.error("--fix takes one FILE; call it once for each")
    for option, out in (("--fix", args.fix), ("--report", args.report)):
        if out and os.path.realpath(out) in map(os.path.realpath, args.files):
            parser.error(f"{option} {out}: would overwrite the file that is checked; give another name")
        if out and any(is_among(out, path) for path in args.files):
            parser.error(f"{option} {out}: would be read as data of the folder that is checked; put it elsewhere")
    return args


def positive(text):
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def load_tokenizer(path):
    """The QWenTokenizer of a folder or hub name."""
    if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "qwen.tiktoken")):
        raise FileNotFoundError(f"{path}: has no qwen.tiktoken; copy it from the published checkpoint")
    return QWenTokenizer.from_pretrained(path)


def open_report(path):
    # Half a surrogate pair, which a record may hold, becomes the escape that JSON knows for it.
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def as_line(path, problem):
    """A Problem as a line of the report."""
    fields = {"file": path, "record": problem.place, "id": problem.id, "field": problem.field, "kind": problem.kind}
    fields |= {"level": "error" if problem.is_error else "warning", "message": problem.message}
    return json.dumps(fields, ensure_ascii=False) + "\n"


def lines(check, args):
    """The lines of the printed summary."""
    yield from summary.files_table(check.files)
    yield from summary.kinds_lines(check.files, {"the file"} | ERRORS, "errors")
    missing = [file.path for file in check.files if file.kinds["missing picture"]]
    folders = dict.fromkeys(folder for path in missing for folder in search_dirs(path, args.image_folder))
    if folders:
        yield f"pictures were looked for in {', '.join(folders)}; correct the paths or give --image_folder"
    yield from filter(None, (convert_hint(file.path, file.formats, file.num_records) for file in check.files))
    yield from summary.kinds_lines(check.files, WARNINGS, "warnings")
    yield ""
    yield summary.pictures_line(check.pictures.values(), sum(file.num_pictures for file in check.files))
    if args.model:
        yield from summary.lengths_lines(check.files, args.max_length)
    else:
        yield "lengths: left out; give --model CHECKPOINT for them"


def printable(text):
    """The text as standard output can show it, whatever its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def fix(found, out):
    """Write the file without its bad records to `out`, and the skip manifest beside it; says so."""
    if found.unusable:
        raise DataError(f"{found.path}: {found.unusable}; --fix only leaves out records")
    if len(found.bad) == found.num_records:
        raise DataError(f"{found.path}: no good record; --fix would leave nothing")
    manifest = plain_name(out).with_suffix(".skip.json")
    write_cleaned(found.path, out, found.bad)
    skipping.write_manifest(found.path, manifest, found.bad)
    kept = found.num_records - len(found.bad)
    print(f"\n{out}: {kept:,} records; {manifest}: the {len(found.bad):,} that were left out (--skip_manifest)")
    folder = search_dirs(found.path)[0]
    if os.path.realpath(os.path.dirname(out)) != os.path.realpath(folder):
        folder = os.path.relpath(folder) if not os.path.isabs(found.path) else folder
        print(f"relative pictures were looked for beside {found.path}: use {out} with --image_folder {folder}")


def finish(files):
    """Say that all is well, or raise DataError."""
    errors = sum(count for file in files for kind, count in file.kinds.items() if kind not in WARNINGS)
    if errors:
        bad, num_records = sum(len(file.bad) for file in files), sum(file.num_records for file in files)
        message = f"{errors:,} error{'s' * (errors > 1)} in {bad:,} of {num_records:,} records"
        raise DataError(f"{message}; correct them, or leave the records out with --fix")
    print("\nno errors")


class Bar:
    """A progress bar on a terminal, nothing elsewhere; `bar(text, num_done, num_all or None)` moves it."""

    def __init__(self):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        # No thread that refreshes it: processes are forked while it is shown.
        self._progress = Progress(
            *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
        )
        self._tasks = {}

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def __call__(self, text, num_done, num_all):
        if text not in self._tasks:
            self._tasks[text] = self._progress.add_task(text, total=num_all)
        self._progress.update(self._tasks[text], completed=num_done, total=num_all, refresh=True)
