"""The registry of benchmarks, as data."""

from pathlib import Path

from qwen_vl.evaluation.benchmarks.benchmark import Benchmark
from qwen_vl.evaluation.records import Record

BENCHMARKS: dict[str, Benchmark] = {}


def get(name: str) -> Benchmark:
    """Return the benchmark of a name; raise ValueError if there is none."""
    if name not in BENCHMARKS:
        raise ValueError(f"{name}: no such benchmark")
    return BENCHMARKS[name]


def check(benchmark: Benchmark, data_dir: Path) -> list[str]:
    """Return what is wrong with the files."""
    return [
        f"{benchmark.name}: {data_dir / file.path} is missing; {file.source}"
        for file in benchmark.files.values()
        if not file.optional and not (data_dir / file.path).exists()
    ]


def load(benchmark: Benchmark, data_dir: Path) -> list[Record]:
    """Return the records."""
    return list(benchmark.reader({role: data_dir / file.path for role, file in benchmark.files.items()}))


def load_shots(benchmark: Benchmark, data_dir: Path) -> list[Record]:
    """Return the training records."""
    return []
