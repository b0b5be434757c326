"""An adapter on its base, in memory."""

from pathlib import Path

import torch

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer

from . import build
from .adapter import Adapter


def load_adapted(
    adapter: str | Path | Adapter,
    *,
    base: str | Path | None = None,
    dtype: LoadedDtype = "auto",
    trust_base: bool = False,
    device: torch.device | str | None = None,
) -> tuple[QWenLMHeadModel, QWenTokenizer]:
    """Return (model, tokenizer): the base with the adapter merged into float weights, or next to quantized ones.

    A base that was quantized during training is quantized in the same way, on `device`.
    base: where the base is now, if it has moved. Its weights are checked as in `Adapter.find_base`.
    """
    adapter = Adapter.open(adapter)
    folder = adapter.find_base(base, trust=trust_base)
    tokenizer = adapter.load_tokenizer(folder)
    stored = folder.quantization
    # GPTQ is a storage format: an adapter that trained on it may have a float base now.
    kind = stored or (None if adapter.quantization == "gptq" else adapter.quantization)
    model = loading.load_model(folder.path, dtype=dtype, quantization=kind, device=device, fast_kernels=True)
    adapted = build.load_adapters(model, adapter)
    model = adapted.get_base_model() if kind else adapted.merge_and_unload()
    family.mark_as_chat(model.generation_config)  # adapters are trained in ChatML, whatever the format of the base
    return model, tokenizer
