"""Adapters that started from the weights of their base (PiSSA, OLoRA), as plain ones on the unchanged base."""

import re
from copy import deepcopy
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from .adapter import OF_BASE_WEIGHTS, WEIGHTS_FILE, Adapter

FACTORS = re.compile(r"\.lora_(embedding_)?[AB]\b")  # in the names of A and B; DoRA's magnitudes are no factors


def starting_point(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of new adapters whose start changed the base weights, for `make_plain`; {} for others.

    Call it before training.
    """
    if model.peft_config["default"].init_lora_weights not in OF_BASE_WEIGHTS:
        return {}
    state = get_peft_model_state_dict(model)
    return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items() if FACTORS.search(name)}


def make_plain(folder: str | Path, start: dict[str, torch.Tensor]) -> None:
    """Replace the adapter in a folder by one of twice the rank on the unchanged base. start: of `starting_point`.

    B A - B' A' is one product of stacked matrices, so readers need not repeat the start, which not all of them can.
    PEFT's own conversion (`path_initial_model_for_weight_conversion`, peft 0.21) gives the same A and B but writes
    nothing else: it loses whole modules, rows of new tokens, DoRA's magnitudes and adapters of embeddings, and fails
    with --lora_bias. It also wants the start on disk, to load it as a second adapter.
    """
    file = Path(folder, WEIGHTS_FILE)
    tensors = load_file(file)
    for name, first in start.items():
        is_b = ".lora_B" in name or ".lora_embedding_B" in name
        stacked = [tensors[name], (-first if is_b else first).to(tensors[name])]
        tensors[name] = torch.cat(stacked, dim=1 if is_b else 0).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    config = deepcopy(Adapter.open(folder).config)
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # the scaling stays what it was
    config.r, config.init_lora_weights = 2 * config.r, True
    config.save_pretrained(str(folder))
