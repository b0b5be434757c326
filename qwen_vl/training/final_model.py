"""The trained model or adapter as a folder."""

import json
import os
from pathlib import Path

from peft import PeftModel

from qwen_vl.adapters import lora_targets
from qwen_vl.adapters.bases import BASE_FILE
from qwen_vl.checkpoint import saving, shard_writer
from qwen_vl.checkpoint.saving import staged
from qwen_vl.families import v1 as family

# Weights that an earlier run may have left in an output folder, and that would be loaded in place of the new ones.
WEIGHT_PATTERNS = ("model*.safetensors*", "pytorch_model*", "adapter_model*", "adapter_config.json", BASE_FILE)


def write_folder(model, tokenizer, folder, *, base=None, **options):
    """Write a model into `folder` with its configs, tokenizer, processor and code, or an adapter with base.json.

    base: {"name", "fingerprint"} of the weights under an adapter. options: those of `save_pretrained`.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, **options)
        (Path(folder) / BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    else:
        family.mark_as_chat(model.generation_config)
        with saving.own_class(model):
            model.save_pretrained(folder, **options)
    shard_writer.write_processor(folder, model, tokenizer)


def write_companions(model, tokenizer, folder, *, base=None):
    """Write what stands beside the weights into `folder`, for weights that another writes there in parts."""
    if isinstance(model, PeftModel):
        model.peft_config["default"].save_pretrained(folder)
        (Path(folder) / BASE_FILE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")
    else:
        family.mark_as_chat(model.generation_config)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    shard_writer.write_processor(folder, model, tokenizer)


def save_final(model, tokenizer, output_dir, *, dtype, base=None, weights=None, start=None):
    """Write the trained model in `dtype`, or the adapter as it is, into `output_dir`; other files there stay.

    weights: all of the model's by name, where it holds only a part of each (`engines.whole_weights`).
    start: `adapters.starting_point`, of which the adapter is freed.
    Weights of an earlier run are replaced. Raises OSError when the folder cannot be written.
    """
    output_dir = Path(output_dir)
    if weights is None and not base:
        model = model.to(dtype)
    elif not base:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    with staged(output_dir / ".saving", output_dir) as staging:
        write_folder(model, tokenizer, staging, base=base, state_dict=weights)
        if start:
            lora_targets.make_plain(staging, start)
        for old in {path for pattern in WEIGHT_PATTERNS for path in output_dir.glob(pattern)}:
            old.unlink()
        for file in staging.iterdir():
            os.replace(file, output_dir / file.name)
