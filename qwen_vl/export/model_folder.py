"""The one way a model folder is written: from weights that are read by name, shard by shard."""

from pathlib import Path

import torch

from qwen_vl.adapters import on_disk
from qwen_vl.checkpoint import shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.dtypes import dtype_or_auto
from qwen_vl.families import v1 as family
from qwen_vl.model.tokenization_qwen import QWenTokenizer


def dtypes_of(disk: DiskModel, dtype: str) -> dict[str, torch.dtype]:
    """Return {name: dtype} of the weights to write. dtype: one of CHOICES; "auto" keeps that of each weight."""
    wanted = dtype_or_auto(dtype)
    return {name: disk.weights.dtype(name) if wanted == "auto" else wanted for name in disk.places}


def write(
    folder: str | Path,
    disk: DiskModel,
    tokenizer: QWenTokenizer,
    *,
    dtypes: dict[str, torch.dtype],
    max_shard_size: str = shard_writer.SHARD_SIZE,
) -> None:
    """Write configs, tokenizer, code and weights into a folder; an adapter on the DiskModel is merged into them.

    dtypes: {name: dtype} of the weights to write. Memory is that of one shard.
    """
    shard_writer.write_companions(folder, disk.plain, tokenizer, dtype=dtypes[family.HEAD_WEIGHT])
    outlines = {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in disk.shapes().items()}
    pending: dict[str, torch.Tensor] = {}  # of the layers that were merged and are not written yet

    def read(name: str) -> torch.Tensor:
        if name not in pending:
            pending.update(on_disk.merged(disk, name))
        return pending.pop(name).to(dtypes[name])

    shard_writer.write_weights(folder, outlines, read, max_shard_size=max_shard_size)
