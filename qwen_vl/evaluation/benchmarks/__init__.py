"""The registry of benchmarks, as data."""

from qwen_vl.evaluation.benchmarks.benchmark import Benchmark

BENCHMARKS: dict[str, Benchmark] = {}


def get(name: str) -> Benchmark:
    """Return the benchmark of a name; raise ValueError if there is none."""
    if name not in BENCHMARKS:
        raise ValueError(f"{name}: no such benchmark")
    return BENCHMARKS[name]
