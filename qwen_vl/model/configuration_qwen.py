"""The configuration of a Qwen-VL checkpoint (docs/checkpoint_format.md section 1)."""

from transformers import PreTrainedConfig

DEFAULT_QUERIES = 256  # what a config without `visual.n_queries` means: every published checkpoint

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


class QWenConfig(PreTrainedConfig):
    """Everything that decides shapes and behaviour of a Qwen-VL model; defaults are the published 9.6B model.

    `intermediate_size` is twice the width of the MLP's hidden layer. `visual` describes the vision tower; its
    optional `n_queries` is the number of resampler queries and so the length of a picture span (default 256).
    `bf16`, `fp16`, `fp32` and `use_flash_attn` are wishes of an older loader: kept and written back, not obeyed.
    Raises ValueError for shapes that cannot be built.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers reads a plain list)
    attribute_map = {"head_dim": "kv_channels"}  # noqa: RUF012

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
    visual: dict | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.visual = dict(PUBLISHED_VISUAL) if self.visual is None else dict(self.visual)
        missing = sorted(set(PUBLISHED_VISUAL) - set(self.visual))
        if missing:
            raise ValueError(
                f"config.visual lacks {', '.join(missing)}; a Qwen-VL config describes its vision tower there"
            )
        if self.visual["output_dim"] != self.hidden_size:
            raise ValueError(
                f"config.visual.output_dim is {self.visual['output_dim']} but hidden_size is {self.hidden_size}; "
                "picture features replace embeddings, so the two must be equal"
            )
        if round(self.image_span_tokens**0.5) ** 2 != self.image_span_tokens:
            raise ValueError(
                f"config.visual.n_queries is {self.image_span_tokens}; use a square number such as 16 or 256"
            )

    @property
    def image_span_tokens(self) -> int:
        """Number of ids between <img> and </img>, which is the number of embeddings a picture becomes."""
        return self.visual.get("n_queries", DEFAULT_QUERIES)


QWenConfig.register_for_auto_class("AutoConfig")
