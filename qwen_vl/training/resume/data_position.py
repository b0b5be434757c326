"""The position of a run in its data: what a checkpoint records of it, and what is left for a resumed run."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_vl.data.dataset import SampleDataset
from qwen_vl.data.packing import PackedDataset
from qwen_vl.data.sources.streaming import StreamingDataset

TrainData = SampleDataset | PackedDataset | StreamingDataset  # what a run may train on

SAME = {  # what the order of the data depends on, and what to say when it has changed
    "kind": "--streaming",
    "unit": "--packing",
    "order": "--train_sampling_strategy",
    "seed": "--data_seed (or --seed)",
    "size": "the number of samples in the data",
    "fingerprint": "the data, or how they are read",
}


def fingerprint(*columns: Sequence[int]) -> str:
    """Return a digest of lists of ints, such as the lengths of all samples; other data have another digest."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.asarray(column, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


class DataPosition:
    """Counts the samples (or packed rows) that all ranks together have taken since an epoch began.

    size: of an epoch, None for a stream, whose only epoch has no end. per_step: taken in one optimizer step, fewer in
    the last one of an epoch. description: the values of SAME, and "group": the size of the batches that samples are
    sorted for, or None.
    """

    def __init__(self, description: dict[str, Any], *, per_step: int, epoch: int = 0, seen: int = 0) -> None:
        self.description, self.size = description, description["size"]
        self.per_step, self.epoch, self.seen = per_step, epoch, seen

    def begin(self, epoch: int) -> None:
        """Begin an epoch, or continue it."""
        if epoch != self.epoch:
            self.epoch, self.seen = epoch, 0

    def step(self) -> None:
        """Count one optimizer step."""
        self.seen = self.seen + self.per_step if self.size is None else min(self.seen + self.per_step, self.size)

    @property
    def epochs(self) -> float | None:
        """Return how many epochs are done, with a fraction; None for a stream."""
        return None if self.size is None else self.epoch + self.seen / max(self.size, 1)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: {"epoch", "seen", ..}, as `check` takes it."""
        return {**self.description, "epoch": self.epoch, "seen": self.seen}

    def from_steps(self, steps: int) -> None:
        """Move to where a run is after some steps, for a checkpoint without a position."""
        per_epoch = math.ceil(self.size / self.per_step) if self.size else steps + 1
        self.epoch, self.seen = steps // per_epoch, steps % per_epoch * self.per_step

    def steps_to(self, num_epochs: float) -> int:
        """Return the steps from here to the end of `num_epochs`, which may have a fraction."""
        steps = 0
        for epoch in range(self.epoch, math.ceil(num_epochs)):
            share, seen = min(1, num_epochs - epoch), self.seen if epoch == self.epoch else 0
            end = self.size if share == 1 else math.ceil(share * math.ceil(self.size / self.per_step)) * self.per_step
            steps += math.ceil(max(min(end, self.size) - seen, 0) / self.per_step)
        return steps


def check(recorded: dict[str, Any], description: dict[str, Any]) -> None:
    """Raise ValueError if a checkpoint was made on other data, or in another order, than this run has."""
    changed = [what for key, what in SAME.items() if recorded.get(key) != description[key]]
    if changed:
        raise ValueError(
            f"--resume_from_checkpoint: {', '.join(changed)} changed since the checkpoint was made, so its place "
            "in the data is not known; go back, or begin the data anew with --ignore_data_skip True, or the run with "
            "--resume false or another --output_dir"
        )
