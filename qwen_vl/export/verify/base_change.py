"""What it changes to merge an adapter into other weights than it saw in training: the quantised ones of its base."""

import torch
from peft import PeftModel

from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading, quantization
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.evaluation import probe_prompts
from qwen_vl.families import v1 as family

from . import verify


def inputs_for(tokenizer, config, path=None, image_folder=None, limit=16):
    """Model inputs for the questions on which a change of base is measured: of a file, or built in."""
    records, folders = probe_prompts.load(path, image_folder=image_folder, limit=limit)
    size = family.image_size(config)
    return [probe_prompts.inputs_of(record, tokenizer, size, folders) for record in records]


def logits_in_training(adapter_dir, trained_on, onto, questions, dtype):
    """The logits of an adapter on the weights that it saw in training; None where the merge adds to just these.

    Float weights that were quantised while training loaded them, as base.json says, are loaded so again.
    """
    adapter = Adapter.open(adapter_dir)
    kind = adapter.quantization
    if onto:
        return verify.logits_from_disk(trained_on, questions, dtype=dtype, adapter_dir=adapter)
    if kind in (None, "gptq") or ModelFolder.open(trained_on).quantization:
        return None
    quantization.quiet_gptqmodel()
    model = loading.load_model(str(trained_on), dtype=dtype, quantization=kind)
    model = PeftModel.from_pretrained(model, str(adapter.folder), torch_device="cpu")
    with torch.no_grad():
        return [verify.logits(model, inputs, verify.LAST_POSITIONS) for inputs in questions]
