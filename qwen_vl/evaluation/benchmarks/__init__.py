"""The registry of benchmarks, as data."""

import difflib
import functools
from dataclasses import replace

from qwen_vl.evaluation.readers import seed_bench

from .benchmark import Benchmark, DataFile, Layout
from .captions import CAPTIONS
from .chat import CHATS
from .choice import CHOICES
from .documents import CHARTS, DOCUMENTS, TEXT
from .grounding import GROUNDING
from .hallucination import HALLUCINATION
from .loading import check, files_used, layout_in, load, load_shots, missing
from .vqa import VQA

FAMILIES = (CAPTIONS, VQA, DOCUMENTS, CHARTS, GROUNDING, CHOICES, CHATS, HALLUCINATION, TEXT)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for family in FAMILIES for benchmark in family}


def get(name: str) -> Benchmark:
    """Return the benchmark of that name; raise ValueError, which lists names that are near, if there is none."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = [known for known in BENCHMARKS if known.startswith(name.lower())]
    near = near or difflib.get_close_matches(name.lower(), BENCHMARKS, n=5, cutoff=0.5)
    raise ValueError(
        f"benchmark {name!r} is not known; {'did you mean' if near else 'use one of'} {', '.join(near or BENCHMARKS)}"
    )


def with_frames(benchmark: Benchmark, num_frames: int) -> Benchmark:
    """Return a benchmark whose clips are asked with so many frames; raise ValueError if it has no clips."""
    reader = benchmark.reader
    has_clips = isinstance(reader, functools.partial) and reader.func is seed_bench.read
    if not has_clips or "video" not in reader.keywords["kinds"]:
        raise ValueError(f"{benchmark.name}: has no video clips; leave out the number of frames")
    if num_frames < 1:
        raise ValueError(f"{num_frames} frames a clip; use at least 1")
    return replace(benchmark, reader=functools.partial(reader, num_frames=num_frames), layouts=())


__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "DataFile",
    "Layout",
    "check",
    "files_used",
    "get",
    "layout_in",
    "load",
    "load_shots",
    "missing",
    "with_frames",
]
