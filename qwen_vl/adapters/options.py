"""The settings of new adapters as one value."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from qwen_vl.families.v1 import DEFAULT_LORA_TARGETS

Bias = Literal["none", "all", "lora_only"]


class LoraOptions(NamedTuple):
    """The settings of new LoRA adapters; those without a comment are as in PEFT's LoraConfig."""

    r: int = 64  # rank
    alpha: int = 16  # scaling is alpha / r
    dropout: float = 0.05
    targets: Sequence[str] = DEFAULT_LORA_TARGETS  # names or words, see `lora_targets.target_modules`
    bias: Bias = "none"
    modules_to_save: Sequence[str] | None = None
    new_tokens: Sequence[int] = ()  # ids whose rows of the embeddings and of lm_head train
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
