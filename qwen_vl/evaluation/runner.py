"""The stage `answer`: a model answers the records of a task, and every answer is on disk when its batch is done."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from filelock import AcquireReturnProxy, FileLock, Timeout

from qwen_vl.evaluation import keys, results, store
from qwen_vl.evaluation.answering import Answerer, ModelIdentity, Said
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.records import Answer, ImageSource, Record
from qwen_vl.evaluation.tasks import Task
from qwen_vl.terminal import Bars

MAX_SHOWN = 10  # images that an error spells out
LOCK = ".lock"


class Counts(NamedTuple):
    """What the answering of a task came to, over all processes."""

    records: int
    reused: int
    answered: int  # now
    failed: int  # listed as unanswered, such as for an image that cannot be opened


class ModelSource:
    """A model that is known, and loaded when the first prompt waits for it."""

    def __init__(self, identity: ModelIdentity, load: Callable[[], Answerer]) -> None:
        """Keep who it is, and the function that loads it."""
        self.identity, self._load = identity, load

    @cached_property
    def model(self) -> Answerer:
        """Return the model; load it first if it is not."""
        return self._load()


def image_digests(task: Task, processes: Processes) -> dict[str, str]:
    """Return {name: digest of the bytes} of all images of a task; each process reads a part of them.

    Raise ValueError, naming the records, for images that cannot be read.
    """
    owners: dict[str, str] = {}
    images: dict[str, ImageSource] = {}
    for record in (*task.records, *task.shots):
        for image in record.images:
            images.setdefault(image.name, image)
            owners.setdefault(image.name, f"record {record.id}")
    own = list(images.values())[processes.rank :: processes.size]
    digests: dict[str, str | None] = {}
    for part in processes.gather(keys.image_digests(own)):
        digests |= part
    found = {name: value for name, value in digests.items() if value is not None}
    missing = [name for name in images if name not in found]
    if missing:
        lines = [f"{name} ({owners[name]})" for name in missing[:MAX_SHOWN]]
        more = f"\n  and {len(missing) - MAX_SHOWN} more" if len(missing) > MAX_SHOWN else ""
        raise ValueError(
            f"{task.run}: {len(missing)} of {len(images)} images cannot be read; put them there, or correct "
            "--data_dir:\n  " + "\n  ".join(lines) + more
        )
    return found


def answer(
    task: Task,
    source: ModelSource,
    results_dir: Path,
    *,
    digests: dict[str, str],
    batch_size: int,
    processes: Processes,
) -> Counts:
    """Let the model answer all records of a task that have no answer under their key, and merge the answers.

    All processes call it; each answers a part. Raise ValueError if the folder is of another model or other settings.
    """
    model_dir = results.model_dir(results_dir, source.identity)
    folder = model_dir / task.run
    answer_keys = _keys(task, source.identity, digests)
    with ExitStack() as stack:

        def prepare() -> set[str]:
            results.claim_model(model_dir, source.identity)
            results.claim_run(folder, task.settings())
            stack.enter_context(_lock(folder))
            return set(store.merge(folder, list(answer_keys), answer_keys))

        done = processes.together(prepare, first_only=True)
        waiting = [index for index, record in enumerate(task.records) if record.id not in done]
        if waiting:
            try:
                model = processes.together(lambda: source.model)
            except BaseException:
                if processes.is_first and not done:
                    _release(folder)
                raise
            own = own_part(task.records, waiting, processes)
            _answer_part(task, model, folder, own, answer_keys, batch_size, processes)
        processes.gather(None)  # all have written
        merged = processes.together(lambda: _counts(folder, answer_keys, len(done)), first_only=True)
    return merged


def _counts(folder: Path, answer_keys: dict[str, str], num_reused: int) -> Counts:
    """Merge the files of all processes and return the counts."""
    answers = store.merge(folder, list(answer_keys))
    failed = sum(answer.error is not None for answer in answers.values())
    return Counts(len(answer_keys), num_reused, len(answers) - failed - num_reused, failed)


def _keys(task: Task, model: ModelIdentity, digests: dict[str, str]) -> dict[str, str]:
    """Return {record id: key of its answer} in the order of the records."""
    counts = task.option_counts() or [0] * len(task.records)
    prompts = task.prompts()
    return {
        record.id: keys.answer_key(model, prompt, task.benchmark.decoding, num_options=count, images=digests)
        for record, prompt, count in zip(task.records, prompts, counts, strict=True)
    }


def _lock(folder: Path) -> AcquireReturnProxy:
    """Take the lock of a run's folder until the end of a `with`; raise ValueError if another command writes there."""
    try:
        return FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder}: another evaluation is writing there; wait for it to end") from error


def _release(folder: Path) -> None:
    """Remove the folder of a run that has no answers; leave one that has any, or a file that is not of a claim."""
    files = [path for path in folder.iterdir() if path.name != LOCK]
    if all(path.name == results.SETTINGS or (path.name == store.ANSWERS and not path.stat().st_size) for path in files):
        shutil.rmtree(folder)


def own_part(records: Sequence[Record], waiting: Sequence[int], processes: Processes) -> list[int]:
    """Return the indices of the records that this process answers: whole groups with the same images."""
    groups: dict[str, list[int]] = {}
    for index in waiting:
        groups.setdefault(records[index].cluster, []).append(index)
    parts: list[list[int]] = [[] for _ in range(processes.size)]
    num_placed = 0
    for group in groups.values():  # consecutive groups, so that each part has about the same number of records
        parts[num_placed * processes.size // len(waiting)] += group
        num_placed += len(group)
    return parts[processes.rank]


def _answer_part(
    task: Task,
    model: Answerer,
    folder: Path,
    indices: Sequence[int],
    answer_keys: dict[str, str],
    batch_size: int,
    processes: Processes,
) -> None:
    """Answer the records at `indices`, and append each finished batch to the file of this process."""
    if not indices:
        return
    prompts, counts = task.prompts(), task.option_counts()
    name = task.run if processes.size == 1 else f"{task.run} (rank 0 of {processes.size})"
    began, num_done = time.monotonic(), 0
    with store.AnswerFile(folder, processes.rank) as file, Bars(hidden=not processes.is_first) as bars:
        bars.show(name, 0, len(indices))

        def keep(batch: list[tuple[int, Said]]) -> None:
            nonlocal num_done
            ids = [task.records[indices[index]].id for index, _ in batch]
            said = [said for _, said in batch]
            file.append(Answer(id, answer_keys[id], **words._asdict()) for id, words in zip(ids, said, strict=True))
            num_done += len(batch)
            rate = num_done / max(time.monotonic() - began, 1e-9)
            bars.show(name, num_done, len(indices), note=f"{rate:.1f} records/s")

        model.answer(
            [prompts[index] for index in indices],
            task.benchmark.decoding,
            option_counts=[counts[index] for index in indices] if counts else (),
            batch_size=batch_size,
            on_batch=keep,
        )
