"""The effect of merging an adapter that was trained on a quantized base into other weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from qwen_vl.adapters.adapter import Adapter
from qwen_vl.checkpoint import loading, quantization
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.evaluation import probe_prompts
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import verify


def inputs_for(
    tokenizer: QWenTokenizer,
    config: QWenConfig,
    path: str | Path | None = None,
    image_folder: str | None = None,
    limit: int = 16,
) -> list[verify.ModelInputs]:
    """Return model inputs for the questions that measure a change of base: those of a file, or built-in ones."""
    records, folders = probe_prompts.load(path, image_folder=image_folder, limit=limit)
    size = family.image_size(config)
    return [probe_prompts.inputs_of(record, tokenizer, size, folders) for record in records]


def logits_in_training(
    adapter_dir: str | Path | Adapter,
    trained_on: str | Path | ModelFolder,
    onto: str | Path | None,
    questions: Sequence[verify.ModelInputs],
    dtype: torch.dtype,
) -> list[torch.Tensor] | None:
    """Return the logits of an adapter on the weights of its training, None if the merge adds to these very weights.

    If training quantized float weights while it loaded them, as base.json says, they are quantized again.
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
