"""The findings of the check as text: a table of the files, the kinds of problems, the images, the lengths."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from qwen_vl.data.validation import Problem
from qwen_vl.terminal import text_table

from .inspect_record import Inspected, SeenImage

MAX_EXAMPLES = 3  # problems of a kind that are spelled out
MAX_BINS = 16
BAR = 40  # characters of the longest bar


class FileSummary:
    """The counts of one file, filled by `add` and `add_problem`."""

    def __init__(self, path: str) -> None:
        self.path, self.name = str(path), Path(path).name
        self.num_records = self.num_images = self.num_targets = 0
        self.lengths = array("i")
        self.longest = (0, "")  # (tokens, place and id)
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)  # by kind
        self.bad: dict[str, tuple[str | int | None, list[str]]] = {}  # place: (own id, [reason, ..])
        self.warned: set[str] = set()  # places
        self.unusable: str | None = None  # the error of the file as a whole
        self.formats: Counter[str] = Counter()  # of records that seem to be of another format

    def add(self, inspected: Inspected) -> None:
        """Count a record without its problems."""
        self.num_records += 1
        self.formats.update([inspected.format] if inspected.format else [])
        self.num_images += len(inspected.uses)
        if inspected.length is not None:
            self.lengths.append(inspected.length)
            self.num_targets += inspected.num_targets or 0
            name = inspected.place if inspected.id is None else f"{inspected.place} (id {inspected.id!r})"
            self.longest = max(self.longest, (inspected.length, name), key=lambda pair: pair[0])

    def add_problem(self, problem: Problem, own_id: str | int | None) -> None:
        """Count a problem and keep it as an example of its kind."""
        self.kinds[problem.kind] += 1
        if len(self.examples[problem.kind]) < MAX_EXAMPLES:
            self.examples[problem.kind].append(f"{self.name}{problem}")
        if not problem.place:
            self.unusable = problem.message
        elif problem.is_error:
            field = f"{problem.field}: " if problem.field else ""
            self.bad.setdefault(problem.place, (own_id, []))[1].append(f"{problem.kind}: {field}{problem.message}")
        else:
            self.warned.add(problem.place)


def files_table(files: Sequence[FileSummary]) -> list[str]:
    """Return the lines of a table: a row for each FileSummary, and their sum."""
    header = ["file", "records", "bad", "warned", "images", "tokens", "learned"]

    def numbers(file: FileSummary) -> list[int | None]:
        tokens: list[int | None] = [sum(file.lengths), file.num_targets] if file.lengths else [None, None]
        return [file.num_records, len(file.bad), len(file.warned), file.num_images, *tokens]

    columns = [numbers(file) for file in files]
    rows = [[file.path, *map(_number, column)] for file, column in zip(files, columns, strict=True)]
    if len(files) > 1:
        rows.append(["together", *(_number(_sum(values)) for values in zip(*columns, strict=True))])
    return text_table([header, *rows], numbers=True)


def _sum(values: Sequence[int | None]) -> int | None:
    """Return the sum of the values that are not None; None if all of them are."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def kinds_lines(files: Sequence[FileSummary], kinds: Collection[str], title: str) -> list[str]:
    """Return lines with the count and examples of each of the `kinds`, or [] if none was found."""
    counts = sum((file.kinds for file in files), Counter())
    lines: list[str] = []
    for kind, count in counts.most_common():
        if kind in kinds:
            examples = [example for file in files for example in file.examples[kind]][:MAX_EXAMPLES]
            lines += [f"{count:>9,}  {kind}", *(f"{'':11}{line}" for line in "\n".join(examples).split("\n"))]
    return ["", title, *lines] if lines else []


def images_line(images: Collection[SeenImage], num_uses: int) -> str:
    """Return a line with the number of images and the range of their sizes."""
    sizes = [image.size for image in images if image.size]
    text = f"images: {num_uses:,} in the texts, {len(images):,} different ones"
    if not sizes:
        return text + ", none opened"
    smallest, largest = (chosen(sizes, key=lambda size: size[0] * size[1]) for chosen in (min, max))
    from_to = f"from {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels"
    return f"{text} opened, {len(images) - len(sizes):,} of them broken; {from_to}"


def lengths_lines(files: Sequence[FileSummary], limit: int) -> list[str]:
    """Return lines with the median, mean and tail of the lengths, and a histogram."""
    lengths = sorted(length for file in files for length in file.lengths)
    if not lengths:
        return []
    longest, name = max((file.longest for file in files), key=lambda pair: pair[0])
    num = len(lengths)
    over = sum(length > limit for length in lengths)
    return [
        f"lengths in tokens: median {lengths[num // 2]:,}, mean {sum(lengths) / num:,.0f}, "
        f"95% up to {lengths[min(num - 1, num * 95 // 100)]:,}, longest {longest:,} at {name}; "
        f"{over:,} over the limit of {limit:,}",
        *histogram(lengths),
    ]


def histogram(lengths: Sequence[int]) -> list[str]:
    """Return lines with bars: how many of the sorted lengths are in each of at most MAX_BINS equal bins."""
    step = _step(lengths[-1])
    counts = Counter(length // step for length in lengths)
    most = max(counts.values())
    width, digits = len(f"{lengths[-1]:,}"), len(f"{most:,}")
    lines = []
    for index in range(min(counts), max(counts) + 1):
        bounds = f"{index * step:>{width},} .. {(index + 1) * step - 1:>{width},}"
        bar = "#" * (-(-counts[index] * BAR // most))  # rounded up, so that no count is invisible
        lines.append(f"  {bounds}  {counts[index]:>{digits},}  {bar}".rstrip())
    return lines


def _step(longest: int) -> int:
    """Return the smallest of 10, 20, 50, 100, 200, .. that needs at most MAX_BINS bins up to `longest`."""
    step = 10
    while longest // step >= MAX_BINS:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step
