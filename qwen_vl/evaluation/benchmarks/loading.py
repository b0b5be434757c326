"""From a benchmark and --data_dir to its records: which of its layouts lies there, what is missing or malformed."""

from collections.abc import Mapping
from pathlib import Path

from qwen_vl.evaluation.records import Record

from .benchmark import Benchmark, DataFile, Layout

DATA = "data/"  # what paths of the registry begin with
ROOT = "root"  # role of --data_dir itself
SHOTS = "shots"
PUBLISHED = "published files"  # name of the first layout of each benchmark


def layouts_of(benchmark: Benchmark) -> tuple[Layout, ...]:
    """Return the layouts of a benchmark, the one of the published evaluation first. A mean of others has none."""
    if benchmark.parts:
        return ()
    return (Layout(PUBLISHED, benchmark.files, benchmark.reader), *benchmark.layouts)


def missing(benchmark: Benchmark, data_dir: Path) -> list[str]:
    """Return what is missing of a benchmark, how to obtain it and where to put it; [] if a layout is complete."""
    layouts = layouts_of(benchmark)
    if not layouts or any(not _missing_files(layout, data_dir) for layout in layouts):
        return []
    names = _missing_files(layouts[0], data_dir)
    problems = [f"{benchmark.name}: {data_dir / file.path} is missing; {file.source}" for file in names]
    for layout in layouts[1:]:
        lacking = dict.fromkeys(str(data_dir / file.path) for file in _missing_files(layout, data_dir))
        paths = " and ".join(lacking)  # a data set may have two roles
        problems[-1] += f"; or, as {layout.name}, {paths}"
    return problems


def check(benchmark: Benchmark, data_dir: Path) -> list[str]:
    """Return all that is missing or malformed, a line each; all files are read, no image is opened."""
    return examine(benchmark, data_dir)[0]


def examine(benchmark: Benchmark, data_dir: Path) -> tuple[list[str], str]:
    """Return what `check` does, and what to say of files with another number of records than the published ones."""
    problems = missing(benchmark, data_dir)
    if problems or benchmark.parts:
        return problems, ""
    try:
        return [], benchmark.size_mark(len(load(benchmark, data_dir)))
    except (OSError, ValueError) as error:
        return named(benchmark, error), ""


def named(benchmark: Benchmark, error: Exception) -> list[str]:
    """Return the lines of an error, each with the name of the benchmark in front."""
    lines = str(error).splitlines()
    return [line if line.startswith(benchmark.name) else f"{benchmark.name}: {line}" for line in lines]


def layout_in(benchmark: Benchmark, data_dir: Path) -> Layout:
    """Return the first layout that is complete; raise ValueError, which says what is missing, if there is none."""
    for layout in layouts_of(benchmark):
        if not _missing_files(layout, data_dir):
            return layout
    problems = missing(benchmark, data_dir) or [f"{benchmark.name}: is a mean; load {', '.join(benchmark.parts)}"]
    raise ValueError("\n".join(problems))


def files_used(benchmark: Benchmark, data_dir: Path) -> dict[str, str]:
    """Return {role: path} of the files that `load` reads; raise ValueError if they are not there."""
    return {role: str(path) for role, path in _there(layout_in(benchmark, data_dir).files, data_dir).items()}


def load(benchmark: Benchmark, data_dir: Path) -> list[Record]:
    """Return the records of a benchmark.

    Raise ValueError for files that are missing, malformed or empty, and for images that are missing; OSError.
    """
    layout = layout_in(benchmark, data_dir)
    paths = _there(layout.files, data_dir)
    records = list(layout.reader({**paths, ROOT: data_dir}))
    if not records:
        raise ValueError(f"{benchmark.name}: {' and '.join(map(str, paths.values()))} have no records; get them again")
    return records


def load_shots(benchmark: Benchmark, data_dir: Path) -> list[Record]:
    """Return the solved examples of the training split; raise ValueError if the benchmark, or --data_dir, has none."""
    file = benchmark.files.get(SHOTS)
    if file is None or benchmark.shots_reader is None:
        raise ValueError(f"{benchmark.name}: has no training split for solved examples; use 0 shots")
    path = _find(file, data_dir)
    if path is None:
        raise ValueError(f"{benchmark.name}: {data_dir / file.path} is missing; {file.source}")
    records = list(benchmark.shots_reader({SHOTS: path, ROOT: data_dir}))
    without = [record.id for record in records if not record.answers]
    if without:
        raise ValueError(f"{path}: record {without[0]} has no answer; use the file of the training split")
    return records


def _missing_files(layout: Layout, data_dir: Path) -> list[DataFile]:
    return [file for file in layout.files.values() if not file.optional and _find(file, data_dir) is None]


def _there(files: Mapping[str, DataFile], data_dir: Path) -> dict[str, Path]:
    """Return {role: path} of the files that are there, without that of solved examples."""
    found = {role: _find(file, data_dir) for role, file in files.items() if role != SHOTS}
    return {role: path for role, path in found.items() if path is not None}


def _find(file: DataFile, data_dir: Path) -> Path | None:
    """Return where a file lies below the folder that holds `data/`, or below `data` itself; None if it does not."""
    for path in (data_dir / file.path, data_dir / file.path.removeprefix(DATA)):
        if path.exists():
            return path
    return None
