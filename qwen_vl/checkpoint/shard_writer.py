"""A standalone checkpoint folder, written shard by shard: memory is that of one shard."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import PreTrainedModel

from qwen_vl.families import v1 as family
from qwen_vl.model.image_processing_qwen import QWenImageProcessor
from qwen_vl.model.processing_qwen import QWenProcessor
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import saving

WEIGHTS = "model.safetensors"
SHARD_SIZE = "2048MB"  # default of every command


def check_free(output_dir: str | os.PathLike[str]) -> Path:
    """Return the Path of a folder to write; raise FileExistsError if it holds anything."""
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{output_dir}: exists and is not empty; give a new folder")
    return output_dir


@contextmanager
def complete(output_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write into; when the block has ended well it is `output_dir`, else it is gone."""
    output_dir = Path(output_dir)
    with saving.staged(output_dir.with_name(f".{output_dir.name}.partial"), output_dir) as staging:
        yield staging
        if output_dir.exists():
            output_dir.rmdir()
        saving.let_read(staging)
        os.replace(staging, output_dir)


def write_weights(
    folder: str | os.PathLike[str],
    tensors: dict[str, torch.Tensor],
    read: Callable[[str], torch.Tensor],
    *,
    max_shard_size: str = SHARD_SIZE,
) -> None:
    """Write weight files, and their index if there are several; a checkpoint's metadata as transformers has it.

    tensors: {name: tensor of that shape and dtype on the meta device}. read(name) gives the tensor to write, and is
    called once for each name, in their order.
    """
    plan = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in plan.filename_to_tensors.items():
        save_file({name: read(name).contiguous() for name in names}, Path(folder, file), metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        Path(folder, f"{WEIGHTS}.index.json").write_text(text, encoding="utf-8")


def write_companions(
    folder: str | os.PathLike[str], model: PreTrainedModel, tokenizer: QWenTokenizer, *, dtype: torch.dtype
) -> None:
    """Write all of a checkpoint but its weights, which come after it: configs, tokenizer, processor, code.

    model: may be one of placeholders. dtype: that of its weights, for readers that ask the config.
    """
    model.save_pretrained(folder, state_dict={})
    Path(folder, WEIGHTS).unlink(missing_ok=True)
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    write_processor(folder, model, tokenizer)


def write_processor(folder: str | os.PathLike[str], model: PreTrainedModel, tokenizer: QWenTokenizer) -> None:
    """Write the tokenizer and the processor of a model."""
    QWenProcessor(QWenImageProcessor(family.image_size(model.config)), tokenizer).save_pretrained(folder)
