"""The position of a run in its data: recorded in checkpoints, restored when the run is resumed."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from qwen_vl.data.dataset import SampleDataset
from qwen_vl.data.packing import PackedDataset
from qwen_vl.data.sources.streaming import StreamingDataset

TrainData = SampleDataset | PackedDataset | StreamingDataset  # what a run may train on

SAME = {  # what the order of the data depends on, and its name in an error message
    "kind": "--streaming",
    "unit": "--packing",
    "order": "--train_sampling_strategy",
    "seed": "--data_seed (or --seed)",
    "size": "the number of samples in the data",
    "fingerprint": "the data, or how they are read",
}


def fingerprint(*columns: Sequence[int]) -> str:
    """Return a digest of lists of ints, such as the lengths of all samples."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.asarray(column, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def described(data: TrainData, args: TrainingArguments, batch: int) -> dict[str, Any]:
    """Return the `description` of a DataPosition: what the order of the data depends on.

    batch: the samples or rows that all ranks together take at a time.
    """
    order = {
        "order": args.train_sampling_strategy,
        "seed": args.seed if args.data_seed is None else args.data_seed,
    }
    if isinstance(data, IterableDataset):
        kind = {"kind": "stream", "unit": data.unit}
        return {**kind, **order, "size": None, "fingerprint": data.fingerprint, "group": None}
    is_packed = isinstance(data, PackedDataset)
    # Packed rows have equal lengths. Ranks with equal numbers of images as well need not wait for each other.
    is_sorted = args.train_sampling_strategy == "group_by_length" or (is_packed and args.world_size > 1)
    return {
        "kind": "files",
        "unit": "rows" if is_packed else "samples",
        **order,
        "size": len(data),
        "fingerprint": fingerprint(data.lengths, data.num_images),
        "group": batch if is_sorted else None,
    }


class DataPosition:
    """Counter of the samples (or packed rows) that all ranks together have taken since an epoch began.

    size: of an epoch; None for a stream, whose only epoch has no end. per_step: taken in an optimizer step; the last
    one of an epoch takes fewer. description: the values of SAME, and "group": the batch size for which samples are
    sorted, or None.
    """

    def __init__(self, description: dict[str, Any], *, per_step: int, epoch: int = 0, seen: int = 0) -> None:
        self.description, self.size = description, description["size"]
        self.per_step, self.epoch, self.seen = per_step, epoch, seen

    def begin(self, epoch: int) -> None:
        """Begin an epoch, or continue the current one."""
        if epoch != self.epoch:
            self.epoch, self.seen = epoch, 0

    def step(self) -> None:
        """Count one optimizer step."""
        self.seen = self.seen + self.per_step if self.size is None else min(self.seen + self.per_step, self.size)

    @property
    def epochs(self) -> float | None:
        """Return the number of epochs done, with a fraction; None for a stream."""
        return None if self.size is None else self.epoch + self.seen / max(self.size, 1)

    def record(self) -> dict[str, Any]:
        """Return the entry of a checkpoint, {"epoch", "seen", ..}, which `check` compares."""
        return {**self.description, "epoch": self.epoch, "seen": self.seen}

    def from_steps(self, steps: int) -> None:
        """Move to the position after some steps, for a checkpoint that records none."""
        per_epoch = math.ceil(self.size / self.per_step) if self.size else steps + 1
        self.epoch, self.seen = steps // per_epoch, steps % per_epoch * self.per_step

    def steps_to(self, num_epochs: float) -> int:
        """Return the number of steps left until `num_epochs`, which may have a fraction."""
        steps = 0
        for epoch in range(self.epoch, math.ceil(num_epochs)):
            share, seen = min(1, num_epochs - epoch), self.seen if epoch == self.epoch else 0
            end = self.size if share == 1 else math.ceil(share * math.ceil(self.size / self.per_step)) * self.per_step
            steps += math.ceil(max(min(end, self.size) - seen, 0) / self.per_step)
        return steps


def check(recorded: dict[str, Any], description: dict[str, Any]) -> None:
    """Raise ValueError if the data of this run, or their order, differ from those of a checkpoint."""
    changed = [what for key, what in SAME.items() if recorded.get(key) != description[key]]
    if changed:
        raise ValueError(
            f"--resume_from_checkpoint: {', '.join(changed)} changed since the checkpoint was made, so its place "
            "in the data is not known; go back, or begin the data anew with --ignore_data_skip True, or the run with "
            "--resume false or another --output_dir"
        )
