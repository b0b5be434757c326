"""The three stages over models and benchmarks: which tasks there are, answering them, and scoring what is on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vl.evaluation import results, runner, scoring
from qwen_vl.evaluation.benchmarks import BENCHMARKS, get, loading, with_frames
from qwen_vl.evaluation.benchmarks.benchmark import Benchmark
from qwen_vl.evaluation.benchmarks.own_data import own_data
from qwen_vl.evaluation.judge import Judge
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.runner import ModelSource
from qwen_vl.evaluation.tasks import Overrides, Subset, Task, changed, restored, run_name
from qwen_vl.evaluation.worst import NUM_WORST

Report = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What a user wants to have answered: benchmarks by name, conversation files, and what is changed about both."""

    names: Sequence[str] = ()
    data: Sequence[str] = ()  # conversation files
    data_dir: Path = Path("eval_data")
    image_folder: str | None = None
    num_frames: int | None = None  # of each clip
    overrides: Overrides = field(default_factory=Overrides)
    subset: Subset = field(default_factory=Subset)

    def benchmarks(self) -> list[Benchmark]:
        """Return the benchmarks, each mean replaced by its parts; raise ValueError with all unknown names."""
        found: dict[str, Benchmark] = {}
        problems: list[str] = []
        for name in self.names:
            try:
                found |= {part: get(part) for part in get(name).parts or (name,)}
            except ValueError as error:
                problems.append(str(error))
        _raise_all(problems)
        for path in self.data:
            own = own_data(path, self.image_folder)
            if found.setdefault(own.name, own).files != own.files:
                raise ValueError(f"--data {path}: another file of that name is given, too; rename one of both")
        return list(found.values())


def check(request: Request) -> list[str]:
    """Return which benchmarks have files with another number of records than the published ones, a line each.

    Raise ValueError with all files that are missing or malformed.
    """
    problems, marks = [], []
    for benchmark in request.benchmarks():
        found, mark = loading.examine(benchmark, request.data_dir)
        problems += found
        marks += [f"{benchmark.name}: {mark}"] if mark else []
    _raise_all(problems)
    return marks


def tasks_of(request: Request, further_problems: Sequence[str] = ()) -> list[Task]:
    """Return the tasks of a request, their records read. Raise ValueError with everything that is wrong."""
    tasks, problems = [], list(further_problems)
    for benchmark in request.benchmarks():
        try:
            tasks.append(_task(benchmark, request))
        except (OSError, ValueError) as error:
            problems += loading.named(benchmark, error)
    _raise_all(problems)
    return tasks


def _task(benchmark: Benchmark, request: Request) -> Task:
    """Return the task of one benchmark; raise OSError or ValueError if its files or the user's changes are wrong."""
    if request.num_frames is not None:
        benchmark = with_frames(benchmark, request.num_frames)
    asked = changed(benchmark, request.overrides)
    records = loading.load(benchmark, request.data_dir)
    is_own = benchmark.name not in BENCHMARKS
    # A seed that decides nothing must not make another run of it.
    subset = Subset() if request.subset.is_all and not asked.num_shots else request.subset
    task = Task(
        benchmark=asked,
        run=run_name(benchmark, asked, subset, request.num_frames),
        records=subset.of(records, benchmark.group_of),
        complete_size=len(records),
        subset=subset,
        shots=loading.load_shots(benchmark, request.data_dir) if asked.num_shots else (),
        files=loading.files_used(benchmark, request.data_dir),
        num_frames=request.num_frames,
        own_data=own_paths(benchmark) if is_own else None,
        whole=records,
    )
    if not task.records:
        raise ValueError(
            f"{task.run}: --offset {request.subset.offset} leaves none of {len(records)} records; lower it"
        )
    task.prompts()  # raise now what is wrong with them
    task.option_counts()
    return task


def own_paths(benchmark: Benchmark) -> dict[str, str]:
    """Return {role: path} of what is needed to read a conversation file again."""
    return {role: file.path for role, file in benchmark.files.items()}


def _raise_all(problems: Sequence[str]) -> None:
    """Raise ValueError with all problems, if there is any."""
    if len(problems) == 1:
        raise ValueError(problems[0])
    lines = [line for problem in problems for line in problem.splitlines()]
    if lines:
        raise ValueError(f"{len(lines)} problems:\n" + "\n".join(f"  {line}" for line in lines))


def answer_all(
    tasks: Sequence[Task],
    models: Sequence[Callable[[], ModelSource]],
    results_dir: Path,
    *,
    batch_size: int,
    report: Report,
) -> list[Path]:
    """Let every model answer every task, one model in memory at a time; return the folders of the runs.

    models: functions that tell who a model is; it is loaded if a record waits for its answer. All processes call this
    together. Raise ValueError or OSError, before any model is loaded, for images that cannot be read and for a model
    that is not there.
    """
    processes = Processes.current()
    digests, problems = [], []
    for task in tasks:
        try:
            digests.append(runner.image_digests(task, processes))
        except ValueError as error:  # the same in all processes
            problems.append(str(error))
    processes.together(lambda: _raise_all(problems))
    folders = []
    sources = [identify() for identify in models]  # all of them first: a wrong path must not cost hours
    while sources:
        source = sources.pop(0)
        for task, images in zip(tasks, digests, strict=True):
            done = runner.answer(task, source, results_dir, digests=images, batch_size=batch_size, processes=processes)
            folders.append(results.model_dir(results_dir, source.identity) / task.run)
            if mark := task.benchmark.size_mark(task.complete_size):
                report(f"{task.run}: {mark}")
            failed = f", {done.failed} without an answer (see answers.jsonl)" if done.failed else ""
            reused = f", {done.reused} answered before" if done.reused else ""
            report(f"{source.identity.label}: {task.run}: {done.answered} of {done.records} answered{reused}{failed}")
        del source
    return folders


def score_all(
    results_dir: Path,
    request: Request,
    *,
    folders: Sequence[Path] | None = None,
    variant: str = scoring.OFFICIAL,
    judge: Judge | None = None,
    num_worst: int = NUM_WORST,
) -> Iterator[dict[str, Any]]:
    """Score the runs in a results folder, and yield what scores.json has, means of benchmarks last.

    folders: those of the runs, by default all; the names of `request` limit them, if it has any. A conversation file
    of `request` is read in place of the one of that name that was answered, which may have moved. num_worst: samples
    of each run that reports show. A benchmark that needs a judge comes after the others. Raise ValueError if there is
    nothing to score and, once the others are scored, for runs that cannot be; OSError at once if the judge refuses.
    """
    wanted = {benchmark.name for benchmark in request.benchmarks()}
    chosen = [
        (folder, settings)
        for folder, settings in results.runs(results_dir)
        if (folders is None or folder in folders) and (not wanted or settings["benchmark"] in wanted)
    ]
    if not chosen:
        raise ValueError(f"{results_dir}: no answers to score; run the stage answer first, or correct --output_dir")
    tasks, problems = [], []
    for folder, settings in chosen:
        try:
            tasks.append((folder, _restored_task(folder, settings, request)))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    tasks.sort(key=lambda entry: entry[1].benchmark.metric.needs_judge)
    scores: dict[Path, dict[str, Any]] = {}
    for folder, task in tasks:
        if task.benchmark.metric.needs_judge and judge is None:
            raise ValueError(judge_problem(task.benchmark.name))
        ask, name = (judge.ask, judge.model) if judge else (None, None)
        try:
            scores[folder] = scoring.score(task, folder, variant=variant, ask=ask, judge=name, num_worst=num_worst)
        except ValueError as error:
            problems.append(str(error))
            continue
        yield scores[folder]
    yield from _means(scores)
    _raise_all(problems)


def judge_problem(name: str) -> str:
    """Return the error for a benchmark that cannot be scored without a judge."""
    return (
        f"{name}: is scored by a judge; give --judge_model with --judge_url (or OPENAI_BASE_URL in the environment), "
        "or only answer it: --stage answer"
    )


def _restored_task(folder: Path, settings: dict[str, Any], request: Request) -> Task:
    """Return the task that a run's folder has the answers of."""
    own = settings.get("own_data")
    name = settings["benchmark"]
    given = next((one for one in request.benchmarks() if one.name == name), None)
    benchmark = given or (own_data(own["records"], own.get("images")) if own else get(name))
    num_frames = settings.get("num_frames")
    if num_frames is not None:
        benchmark = with_frames(benchmark, num_frames)
    records = loading.load(benchmark, request.data_dir)
    asked, subset = restored(benchmark, settings)
    return Task(
        benchmark=asked,
        run=folder.name,
        records=subset.of(records, benchmark.group_of),
        complete_size=len(records),
        subset=subset,
        num_frames=num_frames,
        own_data=own_paths(benchmark) if own else None,
        whole=records,
    )


def _means(scores: dict[Path, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Write and yield the means of benchmarks whose parts were all scored for a model with the same changes."""
    for model_dir in dict.fromkeys(folder.parent for folder in scores):
        of_model = {folder.name: content for folder, content in scores.items() if folder.parent == model_dir}
        for benchmark in BENCHMARKS.values():
            if not benchmark.parts:
                continue
            first = benchmark.parts[0]
            for run in [name for name in of_model if name == first or name.startswith(f"{first}+")]:
                changes = run.removeprefix(first)
                parts = [of_model.get(part + changes) for part in benchmark.parts]
                scored = [part for part in parts if part is not None and part["headline"]]
                if len(scored) == len(benchmark.parts):
                    yield scoring.score_mean(benchmark, model_dir / (benchmark.name + changes), scored)
