"""Weights of a checkpoint that lie in parts, as DeepSpeed and FSDP write them, as those of any model folder.

No process of the training is needed to join them.
"""

from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file

from qwen_vl.adapters.adapter import WEIGHTS_FILE
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.checkpoint.tensors import Weights

DEEPSPEED_FILE = "latest"  # names the folder of the parts
FSDP_WEIGHTS = "pytorch_model_fsdp_0"


def open_folder(path: str | Path | ModelFolder) -> ModelFolder:
    """Open a model folder or a checkpoint of a run, whose weights may lie in parts."""
    folder = ModelFolder.open(path)
    return FolderOfParts(folder.path) if engine_of(Path(folder.path)) and not whole_files(folder.path) else folder


def engine_of(folder: Path) -> str | None:
    """Return which engine left parts of weights in a checkpoint, or None."""
    if (folder / DEEPSPEED_FILE).is_file():
        return "DeepSpeed"
    return "FSDP" if (folder / FSDP_WEIGHTS).is_dir() else None


def whole_files(folder: str | Path) -> list[Path]:
    """Return the files of weights in a checkpoint that were saved whole."""
    return sorted(Path(folder).glob("model*.safetensors")) or sorted(Path(folder).glob(WEIGHTS_FILE))


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of all weights that a checkpoint holds, joined if they lie in parts."""
    if whole := whole_files(folder):
        return {name: tensor for file in whole for name, tensor in load_file(file).items()}
    engine = engine_of(folder)
    if engine == "DeepSpeed":
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(str(folder))
    if engine == "FSDP":
        return joined(folder / FSDP_WEIGHTS)
    raise FileNotFoundError(f"{folder}: holds no weights that are known here")


def joined(folder: Path) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a folder that torch.distributed.checkpoint wrote."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, checkpoint_id=folder, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


class FolderOfParts(ModelFolder):
    """A checkpoint whose weights lie in parts. They are joined, and all in memory, once they are asked for."""

    @cached_property
    def tensors(self) -> Weights:
        """Return the joined weights."""
        return JoinedWeights(self.path, trained_weights(Path(self.path)))


class JoinedWeights(Weights):
    """Float tensors in memory, read as those of files are."""

    def __init__(self, path: str, tensors: dict[str, torch.Tensor]) -> None:
        """Hold the tensors. path: of the checkpoint, for messages."""
        self.path, self.is_quantized, self._tensors = path, False, tensors

    def names(self) -> list[str]:
        """Return the names of the tensors."""
        return sorted(self._tensors)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor."""
        return self._tensors[name].dtype

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor."""
        return list(self._tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor."""
        return self._tensors[name]
