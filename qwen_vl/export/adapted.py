"""An adapter on its base, in memory."""

from peft import PeftModel

from qwen_vl.training import loading, quantization
from qwen_vl.training.saving import CHAT_FORMAT

from .bases import find_base, tokenizer_of


def load_adapted(adapter_dir, *, base=None, dtype="auto", trust_base=False):
    """(model, tokenizer) of the base with the adapter merged into its weights: a plain QWenLMHeadModel.

    The base is the one the adapter names, or `base`, its weights checked as in `bases.find_base`.
    Raises FileNotFoundError and ValueError as that does.
    """
    base = find_base(adapter_dir, base, trust_base)
    model = loading.load_model(base, dtype=dtype)
    tokenizer = tokenizer_of(adapter_dir, base, model.config)
    quantization.quiet_gptqmodel()  # which peft imports for any adapter
    model = PeftModel.from_pretrained(model, adapter_dir).merge_and_unload()
    model.generation_config.chat_format = CHAT_FORMAT  # adapters are trained in it, whatever the base speaks
    return model, tokenizer
