"""Checkpoints on disk: their files, whether they are complete, and which one a run resumes from.

A checkpoint-N folder is written under another name and renamed when it is complete. Its manifest, written last, has the
size and SHA-256 of every file. So a damaged or missing file is detected before the checkpoint is used.
"""

import hashlib
import json
import logging
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors import SafetensorError

from qwen_vl.checkpoint.files import is_adapter, read_json_or_none
from qwen_vl.checkpoint.saving import STAGING

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RUN_STATE = "run_state.json"
TRAINER_STATE = "trainer_state.json"
HASHING_THREADS = 4  # more threads read a disk hardly faster


def write_manifest(folder: str | Path) -> None:
    """Write the manifest of a complete checkpoint, and flush all its files to disk."""
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        entries = list(threads.map(_entry, paths))
    files = {path.relative_to(folder).as_posix(): entry for path, entry in zip(paths, entries, strict=True)}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"format": 1, "written": time.time(), "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _entry(path: Path) -> dict[str, Any]:
    """Return {"bytes", "sha256"} of a file, and flush it to disk."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while piece := file.read(2**20):
            digest.update(piece)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


@contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Turn any error of reading a checkpoint in this block into one ValueError that says what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: damaged, or made with other flags than this run's ({reason}); "
            "use the flags that it was made with, or an earlier checkpoint"
        ) from error


def run_state(folder: str | Path) -> dict[str, Any]:
    """Return the run state that `ResumableTrainer` recorded in a checkpoint; only {"step"} if there is none."""
    return read_json_or_none(folder, RUN_STATE) or {
        "step": (read_json_or_none(folder, TRAINER_STATE) or {}).get("global_step", 0)
    }


class RunCheckpoint(NamedTuple):
    """A checkpoint to resume from, opened once."""

    path: str  # as it was given
    state: dict[str, Any]  # its `run_state`

    @classmethod
    def open(cls, folder: str | Path) -> "RunCheckpoint":
        """Return the checkpoint in a folder, whose files are not checked."""
        return cls(str(folder), run_state(folder))


def damage(folder: str | Path, *, resumable: bool = True) -> list[str]:
    """Return a line for each reason why a run cannot resume from a checkpoint; [] for a complete one.

    resumable: whether the optimizer's state is required. In a folder without a manifest, as other tools write, only the
    files that a run needs are checked.
    """
    folder = Path(folder)
    problems = []
    if (folder / MANIFEST).exists():
        manifest = read_json_or_none(folder, MANIFEST)
        if manifest is None or not isinstance(manifest.get("files"), dict):
            return [f"{MANIFEST} is damaged"]
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            found = threads.map(lambda item: _mismatch(folder / item[0], item[1]), manifest["files"].items())
        problems = [f"{name} {what}" for name, what in zip(manifest["files"], found, strict=True) if what]
    if not problems and read_json_or_none(folder, TRAINER_STATE) is None:
        problems.append(f"no {TRAINER_STATE} there that can be read")
    if resumable and not problems and not has_optimizer(folder):
        kind, flag = ("adapter", "lora_weight_path") if is_adapter(folder) else ("model", "model_name_or_path")
        problems.append(
            f"holds the {kind} alone, without the optimizer's state, as of a run with --save_only_model; train it "
            f"further as --{flag} {folder}"
        )
    return problems


def has_optimizer(folder: Path) -> bool:
    """Return whether a checkpoint holds an optimizer's state, whole or in DeepSpeed's parts."""
    return any(any(folder.glob(pattern)) for pattern in ("optimizer*", "global_step*"))


def _mismatch(path: Path, expected: dict[str, Any]) -> str | None:
    """Return the problem of a file, or None."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"has {size} bytes, not {expected['bytes']}"
        return None if _entry(path)["sha256"] == expected["sha256"] else "has other content than was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def is_checked(folder: str | Path) -> bool:
    """Return whether a checkpoint has a manifest, from which `damage` checks all its files."""
    return Path(folder, MANIFEST).is_file()


def found(output_dir: str | Path) -> list[Path]:
    """Return the checkpoint-N folders of a run, newest first: by the time of writing, then by step.

    Steps alone do not tell: an earlier run may have left larger numbers in the folder.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and _step(path) is not None]
    return sorted(folders, key=lambda path: (written(path), _step(path)), reverse=True)


def _step(path: Path) -> int | None:
    number = path.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else None


def written(path: str | Path) -> float:
    """Return the time at which a checkpoint was written, in seconds since 1970."""
    return (read_json_or_none(path, MANIFEST) or {}).get("written", Path(path).stat().st_mtime)


def rescue(output_dir: str | Path) -> None:
    """Rename the complete checkpoints that a killed run had written but not renamed yet."""
    for folder in sorted(Path(output_dir, STAGING).glob("checkpoint-*")):
        final = Path(output_dir, folder.name)
        if not final.exists() and is_checked(folder) and not damage(folder):
            os.replace(folder, final)


def to_resume(output_dir: str | Path, requested: str | None) -> RunCheckpoint | None:
    """Return the checkpoint to resume from, or None; `requested` is a path, "auto" for the newest, or None.

    With "auto", damaged or incomplete checkpoints are skipped and logged. All ranks return the answer of rank 0.
    Raise FileNotFoundError if a path holds no checkpoint, ValueError if the checkpoint is damaged.
    """
    folder = _agreed(output_dir, requested)
    return RunCheckpoint.open(folder) if folder else None


def _agreed(output_dir: str | Path, requested: str | None) -> str | None:
    """Return the folder that rank 0 has chosen, or raise its error, on all ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return _chosen(output_dir, requested)
    answer: list[str | ValueError | OSError | None] = [None]
    if dist.get_rank() == 0:
        try:
            answer = [_chosen(output_dir, requested)]
        except (ValueError, OSError) as error:
            answer = [error]  # raised on all ranks, so none waits for one that has ended
    dist.broadcast_object_list(answer, src=0)
    (folder,) = answer
    if isinstance(folder, Exception):
        raise folder
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder}: not seen by process {dist.get_rank()}; all machines of a run need the same --output_dir"
        )
    return folder


def _chosen(output_dir: str | Path, requested: str | None) -> str | None:
    if not requested or str(requested).lower() == "false":
        return None
    if is_automatic(requested):
        return _newest(output_dir)
    folder = Path(requested)
    if not folder.is_dir() or not (folder / TRAINER_STATE).is_file():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {requested}: no {TRAINER_STATE} there; give a checkpoint-N folder"
        )
    if problems := damage(folder):
        raise ValueError(f"--resume_from_checkpoint {requested}: {listed(problems)}; give an earlier checkpoint")
    _announce(folder)
    return str(requested)


def is_automatic(requested: str | None) -> bool:
    """Return whether --resume_from_checkpoint asks for the newest checkpoint."""
    return str(requested).lower() in ("true", "auto")


def _newest(output_dir: str | Path) -> str | None:
    """Return the newest complete checkpoint of a run, or None; log it, and the skipped ones with the reasons."""
    rescue(output_dir)
    for folder in found(output_dir):
        problems = damage(folder)
        if not problems:
            _announce(folder)
            return str(folder)
        logger.warning("%s: skipped: %s", folder, listed(problems))
    logger.warning("%s: no checkpoint to resume from yet; training starts from the beginning", output_dir)
    return None


def _announce(folder: Path) -> None:
    state, manifest = read_json_or_none(folder, TRAINER_STATE), read_json_or_none(folder, MANIFEST)
    assert state is not None, "`damage` has read it"
    whole = f"complete, {len(manifest['files'])} files" if manifest else "no manifest: it could not be checked"
    logger.warning(
        "resuming from %s: step %s of %s (%s)", folder, state.get("global_step"), state.get("max_steps"), whole
    )


def listed(problems: list[str], most: int = 3) -> str:
    """Return the first problems in one line, and the number of the others."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def drop_old_checkpoints(newest: str | Path, limit: int, *, best: str | Path | None = None) -> None:
    """Delete the oldest checkpoints of a run, by the order of `found`, until `limit` are left.

    newest: path of the checkpoint that was just written. It is kept, and so is `best`.
    """
    newest = Path(newest)
    folders = found(newest.parent)
    removable = [path for path in reversed(folders) if path not in (newest, Path(best or newest))]
    for path in removable[: max(len(folders) - limit, 0)]:
        shutil.rmtree(path)
