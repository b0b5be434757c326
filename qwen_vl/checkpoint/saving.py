"""Folders of trained models and adapters that are complete or absent."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn

STAGING = ".saving"  # in an output folder, while a checkpoint or the final model is written


def check_writable(output_dir: str | os.PathLike[str]) -> None:
    """Raise OSError if nothing can be written under `output_dir`. Nothing is created or changed."""
    wanted = Path(output_dir).absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "may not be written" if existing.is_dir() else "is not a folder"
        raise OSError(f"{output_dir}: {existing} {reason}; give another --output_dir")


@contextmanager
def staged(
    staging: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    owner: bool = True,
    hint: str = "Free some space or give another folder",
) -> Iterator[Path]:
    """Yield the new, empty folder `staging`, and remove it when the block ends, with or without an error.

    The block moves complete results to `target`. A failed write, whatever a library raises for it, becomes an OSError
    that names `target` and ends in `hint`. With several processes, the owner creates and removes the folder.
    """
    staging = Path(staging)
    try:
        if owner:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        yield staging
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: a full disk, as torch and safetensors say
        if is_lost_connection(error):
            raise
        raise OSError(f"{target}: could not be written ({error}); nothing half-written stays there. {hint}") from error
    finally:
        if owner:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def naming(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the OSError of a full disk within this block, which names nothing, into one that names `target`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(f"{target}: could not be written ({error}); free some space or give another folder") from error


def let_read(folder: Path) -> None:
    """Let everyone read the weight files of a folder who may read the folder; safetensors writes them for one user."""
    for file in folder.glob("*.safetensors"):
        file.chmod(folder.stat().st_mode & 0o666)


def put_in_place(folder: Path, target: Path) -> None:
    """Rename a complete, staged folder to `target`, and replace one that exists there."""
    let_read(folder)
    if target.exists():
        os.replace(target, folder.with_name("replaced"))  # removed with the staging folder
    os.replace(folder, target)


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Give a model its own class within this block instead of that of FSDP, so its code is saved with it."""
    wrapped = type(model)
    own_name = wrapped.__name__.removeprefix("FSDP")
    model.__class__ = next(kind for kind in wrapped.__mro__ if kind.__name__ == own_name)
    try:
        yield
    finally:
        model.__class__ = wrapped


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that the connection to another rank is lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
