"""The configuration of a Qwen-VL checkpoint (docs/checkpoint_format.md section 1)."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}  # arguments of the original loader
WISHES = (*PRECISIONS, "use_flash_attn")
DEFAULT_QUERIES = 256  # of a config without `visual.n_queries`, as in every published checkpoint

PUBLISHED_VISUAL = {
    "heads": 16,
    "image_size": 448,
    "image_start_id": 151857,
    "layers": 48,
    "mlp_ratio": 4.9231,
    "output_dim": 4096,
    "patch_size": 14,
    "width": 1664,
}


TENSOR_PARALLEL = {  # how the decoder's linears are divided among devices; `c_attn` is not in it, see QWenAttention
    "h.*.attn.c_proj": "rowwise",
    "h.*.mlp.w1": "colwise",
    "h.*.mlp.w2": "colwise",
    "h.*.mlp.c_proj": "rowwise",
}
IMPLEMENTATION = "_attn_implementation_internal"  # where transformers keeps the name of the attention implementation
OF_VISION = ("visual", "auto_map", "architectures")  # what a QWenTextConfig does not have


class QWenTextConfig(PreTrainedConfig):
    """The decoder's part of a QWenConfig, which engines read to see that images belong to the model.

    Its values follow those of the QWenConfig. An engine may give it an attention implementation of its own, and the
    vision tower then keeps that of the QWenConfig.
    """

    model_type = "qwen"
    attribute_map = {"head_dim": "kv_channels"}  # noqa: RUF012 (transformers reads a plain dict)
    base_model_tp_plan = TENSOR_PARALLEL


class QWenConfig(PreTrainedConfig):
    """The settings that decide shapes and behavior of a Qwen-VL model; the defaults are the published 9.6B model.

    `intermediate_size` is twice the width of the MLP's hidden layer. `visual` describes the vision tower; its
    optional `n_queries` is the number of resampler queries and so the length of an image span (default 256).
    `bf16`, `fp16`, `fp32` and `use_flash_attn` are wishes to the original loader. As fields they are read and saved,
    and have no effect. As arguments of `from_pretrained` the first three choose the dtype (`with_wishes`).
    Raises ValueError for shapes that cannot be built.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers reads a plain list)
    attribute_map = {"head_dim": "kv_channels"}  # noqa: RUF012
    base_model_tp_plan = TENSOR_PARALLEL
    sub_configs = {"text_config": QWenTextConfig}  # noqa: RUF012

    vocab_size: int = 151936
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    kv_channels: int = 128
    intermediate_size: int = 22016
    layer_norm_epsilon: float = 1e-6
    initializer_range: float = 0.02
    rotary_emb_base: float | int = 10000
    rotary_pct: float = 1.0
    seq_length: int = 2048
    max_position_embeddings: int = 8192
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    emb_dropout_prob: float = 0.0
    attn_dropout_prob: float = 0.0
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bf16: bool = False
    fp16: bool = False
    fp32: bool = False
    use_flash_attn: bool | str = "auto"
    if TYPE_CHECKING:
        visual: dict[str, Any]  # what it is once the config is built
    else:
        visual: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.visual = dict(PUBLISHED_VISUAL) if self.visual is None else dict(self.visual)
        missing = sorted(set(PUBLISHED_VISUAL) - set(self.visual))
        if missing:
            raise ValueError(
                f"config.visual lacks {', '.join(missing)}; a Qwen-VL config describes its vision tower there"
            )
        if self.tie_word_embeddings or not self.scale_attn_weights:
            raise ValueError(
                f"config has tie_word_embeddings {self.tie_word_embeddings} and scale_attn_weights "
                f"{self.scale_attn_weights}; a Qwen-VL model has an lm_head of its own (false) and scales attention "
                "scores (true), so correct them, or take the config.json of the published model"
            )
        if self.visual["output_dim"] != self.hidden_size:
            raise ValueError(
                f"config.visual.output_dim is {self.visual['output_dim']} but hidden_size is {self.hidden_size}; "
                "image features replace embeddings, so the two must be equal"
            )
        if round(self.image_span_tokens**0.5) ** 2 != self.image_span_tokens:
            raise ValueError(
                f"config.visual.n_queries is {self.image_span_tokens}; use a square number such as 16 or 256"
            )
        self.text_config = self._text_config()

    def _text_config(self) -> QWenTextConfig:
        """Return a new QWenTextConfig with the values of this config."""
        part = QWenTextConfig()
        part.__dict__ = copy.deepcopy({name: value for name, value in vars(self).items() if name not in OF_VISION})
        return part

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, in `text_config` as well. An implementation that an engine has set there stays."""
        name, before = self.attribute_map.get(name, name), self.__dict__.get(name)
        super().__setattr__(name, value)
        part = self.__dict__.get("text_config")
        if part is None or name == "text_config" or name in OF_VISION or name not in self.__dict__:
            return
        if name != IMPLEMENTATION or part.__dict__.get(name) == before:
            setattr(part, name, copy.deepcopy(value))

    def to_dict(self) -> dict[str, Any]:
        """Return the config as it is on disk: flat, without `text_config`."""
        flat = super().to_dict()
        flat.pop("text_config", None)
        return flat

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return what transformers returns. Precisions set the dtype as arguments, not as entries of the dict."""
        wishes = taken_wishes(kwargs)
        returns_rest = kwargs.get("return_unused_kwargs", False)
        has_dtype = any(kwargs.get(name) not in (None, "auto") for name in ("dtype", "torch_dtype"))
        config = super().from_dict(config_dict, **kwargs)
        config, *rest = config if returns_rest else (config,)
        config = with_wishes(config, wishes, keeps_dtype=has_dtype)
        return (config, *rest) if returns_rest else config

    @property
    def image_span_tokens(self) -> int:
        """Return the number of ids between <img> and </img>, one for each embedding of an image."""
        return self.visual.get("n_queries", DEFAULT_QUERIES)


def taken_wishes(arguments: dict) -> dict:
    """Remove the arguments that only the original loader has from `arguments`, and return them."""
    return {name: arguments.pop(name) for name in WISHES if name in arguments}


def with_wishes(config: QWenConfig, wishes: dict, *, keeps_dtype: bool = False) -> QWenConfig:
    """Return the config, or a copy of it with what arguments of the original loader ask for.

    `bf16`, `fp16` or `fp32` as True sets the dtype in which weights are loaded, unless `keeps_dtype`. False and None
    ask for nothing. `use_flash_attn` is stored without effect. Raise ValueError for two precisions at once.
    """
    if not wishes:
        return config
    config, precisions = copy.deepcopy(config), {name: wishes[name] for name in PRECISIONS if name in wishes}
    wrong = [f"{name}={value!r}" for name, value in precisions.items() if value not in (True, False, None)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: use True or False, or dtype= for anything else")
    chosen = [name for name, value in precisions.items() if value]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(f'{name}=True' for name in chosen)}: weights have one dtype; pass one of them")
    if chosen:
        precisions = {name: name in chosen for name in PRECISIONS}  # the fields in the file may differ
        config.dtype = config.dtype if keeps_dtype else PRECISIONS[chosen[0]]
    for name, value in precisions.items():
        if value is not None:
            setattr(config, name, bool(value))
    if "use_flash_attn" in wishes:
        config.use_flash_attn = wishes["use_flash_attn"]
        if wishes["use_flash_attn"] is True:
            logger.warning_once(
                'use_flash_attn=True has no effect: PyTorch has kernels of its own; pass attn_implementation="'
                'flash_attention_2" for those of the package flash-attn'
            )
    return config


QWenConfig.register_for_auto_class("AutoConfig")
