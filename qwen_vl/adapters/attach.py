"""An adapter on its base, in memory."""

from qwen_vl.checkpoint import loading, quantization
from qwen_vl.families import v1 as family

from . import bases, build
from .bases import find_base


def load_adapted(adapter_dir, *, base=None, dtype="auto", trust_base=False, device=None):
    """(model, tokenizer) of the base with the adapter: merged into its weights, or beside them if they are quantised.

    A base that was quantised while the adapter trained is quantised in the same way. It is the one the adapter names,
    or `base`, its weights checked as in `bases.find_base`. Quantised weights are loaded onto `device`.
    Raises FileNotFoundError and ValueError as that does.
    """
    base, recorded = find_base(adapter_dir, base, trust_base), bases.recorded_base(adapter_dir) or {}
    config = loading.load_config(base)
    tokenizer = bases.load_tokenizer(adapter_dir, base, config)
    kind = quantization.kind_of(config, base) or recorded.get("quantization")
    kind = None if kind == "gptq" and not quantization.kind_of(config, base) else kind  # the adapter is on another base
    model = loading.load_model(base, dtype=dtype, quantization=kind, device=device, fast_kernels=True)
    model = build.load_adapters(model, adapter_dir)
    model = model.get_base_model() if kind else model.merge_and_unload()
    family.mark_as_chat(model.generation_config)  # adapters are trained in it, whatever the base speaks
    return model, tokenizer
