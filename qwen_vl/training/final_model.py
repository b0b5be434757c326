"""The folder of the trained model or adapter: after a kill it is the old one, the new one, or none that loads."""

import json
import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizer

from qwen_vl.adapters import convert
from qwen_vl.adapters.adapter import Base
from qwen_vl.checkpoint import saving, shard_writer
from qwen_vl.checkpoint.files import ADAPTER_BASE, ADAPTER_CONFIG
from qwen_vl.families import v1 as family
from qwen_vl.model.engine_qwen import with_chat_ends

# Weights of an earlier run in the output folder, which loaders would prefer to the new ones.
WEIGHT_PATTERNS = ("model*.safetensors*", "pytorch_model*", "adapter_model*", ADAPTER_CONFIG, ADAPTER_BASE)
CONFIGS = ("config.json", ADAPTER_CONFIG)  # a folder without either does not load
COMPLETE = ".complete"  # in the output folder: the final model, until all of its files are in place
FILES = "files.json"  # in COMPLETE: the names of its files


def write_folder(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizer,
    folder: str | Path,
    *,
    base: Base | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model into `folder` with its configs, tokenizer, processor and code, or an adapter with base.json.

    base: that of an adapter. state_dict: weights to write instead of the model's.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=state_dict)
        (Path(folder) / ADAPTER_BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    else:
        family.mark_as_chat(model.generation_config)
        with saving.own_class(model):
            model.save_pretrained(folder, state_dict=state_dict)
    shard_writer.write_processor(folder, model, tokenizer)


def write_configs(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizer, folder: str | Path, *, base: Base | None = None
) -> None:
    """Write configs, tokenizer and processor into `folder`, where an engine has written weights in parts.

    `shard_writer.write_companions` also writes the code of the model, which such a checkpoint does not need.
    """
    if isinstance(model, PeftModel):
        model.peft_config["default"].save_pretrained(folder)
        (Path(folder) / ADAPTER_BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    else:
        family.mark_as_chat(model.generation_config)
        model.config.save_pretrained(folder)
        with_chat_ends(model.generation_config, model.config).save_pretrained(folder)
    shard_writer.write_processor(folder, model, tokenizer)


def save_final(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizer,
    output_dir: str | Path,
    *,
    dtype: torch.dtype,
    base: Base | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    start: dict | None = None,
) -> None:
    """Write the trained model in `dtype`, or the adapter unchanged, into `output_dir`; other files there stay.

    Replace the model of an earlier run (see `finish_saving`). Raise OSError if the folder cannot be written.

    weights: all weights of the model by name, if each rank holds a part of them (`engines.whole_weights`).
    start: the `convert.starting_point` to remove from the adapter.
    """
    output_dir = Path(output_dir)
    finish_saving(output_dir)  # left by a run that was killed here
    if not base and weights is None:
        model = model.to(dtype)
    elif not base and weights is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    with saving.staged(output_dir / saving.STAGING, output_dir) as staging:
        write_folder(model, tokenizer, staging, base=base, state_dict=weights)
        if start:
            convert.make_plain(staging, start)
        names = sorted(file.name for file in staging.iterdir())
        (staging / FILES).write_text(json.dumps(names) + "\n", encoding="utf-8")
        saving.let_read(staging)
        os.replace(staging, output_dir / COMPLETE)
    finish_saving(output_dir)


def finish_saving(output_dir: str | Path) -> None:
    """Replace the model in `output_dir` by the one that `save_final` completed; do nothing if there is none.

    It can be interrupted and called again. In between the folder has no config and does not load, since the old config
    is deleted first and the new one is moved last.
    """
    complete, output_dir = Path(output_dir, COMPLETE), Path(output_dir)
    if not (complete / FILES).is_file():  # all files were moved, or there are none
        shutil.rmtree(complete, ignore_errors=True)
        return
    names = json.loads((complete / FILES).read_text(encoding="utf-8"))
    try:
        if any((complete / name).exists() for name in names):
            for name in CONFIGS:
                (output_dir / name).unlink(missing_ok=True)
        for old in {path for pattern in WEIGHT_PATTERNS for path in output_dir.glob(pattern)}:
            if old.name not in names:
                old.unlink()
        for name in sorted(names, key=lambda name: name in CONFIGS):
            if (complete / name).exists():
                os.replace(complete / name, output_dir / name)
    except OSError as error:
        raise OSError(
            f"{output_dir}: the trained model is complete, but could not be put in place ({error}); it is in part in "
            f"{complete}. Mend that and start the same command again, which moves the rest"
        ) from error
    shutil.rmtree(complete)
