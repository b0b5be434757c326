"""A conversation file of the user's own, as a benchmark."""

from qwen_vl.evaluation.benchmarks.benchmark import Benchmark


def own_data(path: str, image_folder: str | None) -> Benchmark:
    """Return the benchmark of a conversation file."""
    raise ValueError(f"{path}")
