"""A benchmark as data: files, reader, prompt, decoding, metric, submission file, published numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl.evaluation.metrics.result import Metric, Pair
from qwen_vl.evaluation.records import Decoding, Ranking, Record, Style

# Gets {role: path} of the files of a benchmark that are there; role "root" is --data_dir.
Reader = Callable[[Mapping[str, Path]], Sequence[Record]]
Submission = Callable[[Path, Sequence[Pair]], list[Path]]  # writes into a folder and returns what it wrote


@dataclass(frozen=True)
class DataFile:
    """A file or folder that a benchmark needs, and how to obtain it. `path` is relative to --data_dir.

    --data_dir is the folder that holds `data/`; the folder `data` itself will do. `source` says where the file can be
    had, and what to convert.
    """

    path: str
    source: str
    optional: bool = False


@dataclass(frozen=True)
class Layout:
    """Another form in which the files of a benchmark may lie there, and what reads them."""

    name: str  # for people, such as "VLMEvalKit table"
    files: Mapping[str, DataFile]
    reader: Reader


@dataclass(frozen=True)
class Benchmark:
    """One entry of the registry. Nothing outside `benchmarks/` knows a name of one."""

    name: str
    title: str
    files: Mapping[str, DataFile]  # by role, such as "records", "annotations", "images", "shots"
    reader: Reader
    template: str  # a key of prompts.TEMPLATES
    decoding: Decoding | Ranking
    metric: Metric
    style: Style = "raw"
    num_shots: int = 0
    size: int | None = None  # records in the complete file
    published: Mapping[str, float] = field(default_factory=dict)  # {"Qwen-VL": 58.6, "Qwen-VL-Chat": 56.6}
    published_note: str = ""  # source, where it is not the authors' repository
    submission: Submission | None = None
    parts: tuple[str, ...] = ()  # of a mean: names of the benchmarks whose headline figures are averaged
    group_of: Callable[[Record], str] | None = None  # names the records that a subset must not tear apart
    layouts: tuple[Layout, ...] = ()  # other forms of the same files, in order of preference
    shots_reader: Reader | None = None  # of role "shots", solved examples of a training split
    has_answers: bool = True  # False: a test split, only a submission file can be made of its answers
    # Published numbers of other figures, {figure: {model: number}}, and with solved examples, {shots: {model: number}}.
    published_figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_with_shots: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def size_mark(self, num_records: int) -> str:
        """Return what to say of files with so many records; "" if that is the size, or the size is not known."""
        return size_mark(num_records, self.size)


def size_mark(num_records: int | None, size: int | None) -> str:
    """Return what to say of data files with so many records instead of `size`; "" if both agree or one is unknown."""
    if not size or not num_records or num_records == size:
        return ""
    return f"data files: {num_records:,} records, published: {size:,}"
