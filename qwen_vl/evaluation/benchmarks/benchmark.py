"""A benchmark as data: files, reader, prompt, decoding, metric, submission file, published numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qwen_vl.evaluation.metrics.result import Metric, Pair
from qwen_vl.evaluation.records import Decoding, Ranking, Record, Style

Reader = Callable[[Mapping[str, Path]], Sequence[Record]]  # gets {role: path} of the files of a benchmark
Submission = Callable[[Path, Sequence[Pair]], list[Path]]  # writes into a folder and returns what it wrote


@dataclass(frozen=True)
class DataFile:
    """A file or folder that a benchmark needs, and how to obtain it. `path` is relative to --data_dir."""

    path: str
    source: str  # where it can be had, and what to convert
    optional: bool = False


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
