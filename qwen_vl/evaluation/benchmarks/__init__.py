"""The registry of benchmarks, as data."""

import difflib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from qwen_vl.evaluation.records import Record

from .benchmark import Benchmark, DataFile, Layout, Reader
from .captions import CAPTIONS
from .chat import CHATS
from .choice import CHOICES
from .documents import CHARTS, DOCUMENTS, TEXT
from .grounding import GROUNDING
from .hallucination import HALLUCINATION
from .loading import check, files_used, layout_in, layouts_of, load, load_shots, missing
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
    """Return a benchmark whose clips are asked with so many frames; raise ValueError if it has no clips.

    Converted prompts, which name their frames, are not read then.
    """
    if num_frames < 1:
        raise ValueError(f"{num_frames} frames a clip; use at least 1")
    layouts = [layout for layout in layouts_of(benchmark) if "clips_10" in layout.files]
    if not layouts:
        raise ValueError(f"{benchmark.name}: has no video clips; leave out the number of frames")
    first, *others = (replace(layout, reader=_asking(layout.reader, num_frames)) for layout in layouts)
    return replace(benchmark, reader=first.reader, layouts=tuple(others))


def _asking(reader: Callable[..., Sequence[Record]], num_frames: int) -> Reader:
    return functools.partial(reader, num_frames=num_frames)


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
