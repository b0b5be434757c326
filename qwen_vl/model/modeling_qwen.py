"""Qwen-VL: a causal decoder in which the embeddings of each picture replace those of its span (SPEC sections 2-4)."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .chat_qwen import ChatMixin, stop_word_processors
from .configuration_qwen import QWenConfig
from .image_processing_qwen import open_picture, pixels
from .visual import CrossAttention, Resampler, VisionTower, attend, sincos_table


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back, then scaled."""

    def __init__(self, dim, epsilon):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden):
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return exact.to(hidden.dtype) * self.weight


class RotaryTables(NamedTuple):
    """What the positions of one forward pass do to queries and keys; shared by all layers."""

    cos: torch.Tensor  # [batch | 1, 1, length, rotary_dim], float32
    sin: torch.Tensor
    query_scale: torch.Tensor | None  # [batch | 1, 1, length, 1], float32: log-n scaling, None where it is 1 everywhere


def ntk_alpha(lengths, seq_length):
    """The dynamic-NTK factor of sequences of `lengths` tokens: 1 up to seq_length, then 3, 7 .. (SPEC section 3)."""
    exponent = torch.ceil(torch.log2(lengths.double() / seq_length) + 1)
    return torch.clamp(2**exponent - 1, min=1)


def rotary_tables(config, position_ids, alpha, scale_queries):
    """RotaryTables for `position_ids` [batch | 1, length]; `alpha` [batch] or None; log-n only if `scale_queries`."""
    dim = int(config.kv_channels * config.rotary_pct)
    exponents = torch.arange(0, dim, 2, device=position_ids.device).float() / dim
    if alpha is None:
        inverse = (1.0 / (float(config.rotary_emb_base) ** exponents))[None]
    else:
        bases = config.rotary_emb_base * alpha ** (dim / (dim - 2))  # float64, as the rule is stated
        inverse = 1.0 / (bases.float()[:, None] ** exponents)
    angles = position_ids[..., None].float() * inverse[:, None].to(position_ids.device)
    angles = torch.cat([angles, angles], dim=-1)[:, None]  # [batch | 1, 1, length, dim]
    scale = None
    if scale_queries:
        place = (position_ids + 1).double()
        scale = torch.where(place > config.seq_length, place.log() / math.log(config.seq_length), 1.0)
        scale = scale.float()[:, None, :, None]
    return RotaryTables(angles.cos(), angles.sin(), scale)


def rotate(states, rotary):
    """`states` [batch, heads, length, head_dim] rotated by position, half against half, in float32, cast back."""
    dim = rotary.cos.shape[-1]
    turned, rest = states[..., :dim].float(), states[..., dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * rotary.cos + torch.cat([-second, first], dim=-1) * rotary.sin
    return torch.cat([turned.to(states.dtype), rest], dim=-1)


class QWenAttention(nn.Module):
    """Causal self-attention; rows of `c_attn` are all queries, then all keys, then all values."""

    is_causal = True

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.dropout = config.kv_channels, config.attn_dropout_prob
        projection = config.kv_channels * config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * projection)
        self.c_proj = nn.Linear(projection, config.hidden_size, bias=not config.no_bias)

    def forward(self, hidden, attention_mask, rotary, past_key_values=None, **kwargs):
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (part.view(shape).transpose(1, 2) for part in self.c_attn(hidden).chunk(3, dim=-1))
        query, key = rotate(query, rotary), rotate(key, rotary)  # [batch, heads, length, head_dim]
        if rotary.query_scale is not None:
            query = query * rotary.query_scale.to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, **kwargs)
        return self.c_proj(output.flatten(2)), weights


class QWenMLP(nn.Module):
    """Gated feed-forward layer: c_proj(w1(x) * silu(w2(x)))."""

    def __init__(self, config):
        super().__init__()
        hidden_width, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, hidden_width, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, hidden_width, bias=bias)
        self.c_proj = nn.Linear(hidden_width, config.hidden_size, bias=bias)

    def forward(self, hidden):
        return self.c_proj(self.w1(hidden) * F.silu(self.w2(hidden)))


class QWenBlock(GradientCheckpointingLayer):
    """One pre-norm decoder block."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer_idx)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, hidden, attention_mask, rotary, past_key_values=None, **kwargs):
        attended, weights = self.attn(
            self.ln_1(hidden), attention_mask, rotary, past_key_values=past_key_values, **kwargs
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), weights


class QWenPreTrainedModel(PreTrainedModel):
    """Loading, saving and random initialisation of Qwen-VL weights."""

    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QWenBlock", "VisualAttentionBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls):
        return True  # transformers guesses from the source text of this file, and the interface is used in visual.py

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (RMSNorm, nn.LayerNorm)):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, CrossAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, Resampler):
            init.normal_(module.query, std=std)
            init.copy_(
                module.pos_embed, sincos_table(module.pos_embed.shape[1], round(module.pos_embed.shape[0] ** 0.5))
            )
        elif isinstance(module, VisionTower):
            init.normal_(module.proj, std=module.proj.shape[0] ** -0.5)
            table = module.positional_embedding
            init.copy_(table, sincos_table(table.shape[1], round(table.shape[0] ** 0.5)))


class QWenModel(QWenPreTrainedModel):
    """Embeddings, decoder blocks and vision tower: ids and pictures to hidden states."""

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QWenBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTower(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    def picture_spans(self, input_ids):
        """Row and first column of the ids inside each complete picture span, in reading order: [spans, 2].

        Raises ValueError for a span that is cut: its features would have no place.
        """
        start_id, length = self.config.visual["image_start_id"], self.config.image_span_tokens
        starts = (input_ids == start_id).nonzero()
        if input_ids.shape[1] == 1 or len(starts) == 0:  # a lone <img> is a generated token, not a span
            return starts[:0]
        ends = starts[:, 1] + length + 1
        whole = ends < input_ids.shape[1]
        whole &= input_ids[starts[:, 0], ends.clamp(max=input_ids.shape[1] - 1)] == start_id + 1
        if not whole.all():
            row, column = starts[~whole][0].tolist()
            raise ValueError(
                f"row {row}: the picture span that starts at token {column} is cut or not closed by </img>; "
                f"it takes {length + 2} ids, so shorten the text around it and never the picture"
            )
        return starts + torch.tensor([0, 1], device=starts.device)

    def open_referenced(self, input_ids, spans):
        """Pixels of the pictures that the ids of `spans` name: [spans, 3, size, size].

        Used only when the caller passed neither `pixel_values` nor `image_features`. Raises ValueError when a span
        names no picture, PictureError when the picture cannot be opened.
        """
        pad_id, opened, pictures = self.config.visual["image_start_id"] + 2, {}, []
        for row, column in spans.tolist():
            ids = input_ids[row, column : column + self.config.image_span_tokens].tolist()
            name = bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
            if not name or any(i >= 256 and i != pad_id for i in ids):
                raise ValueError(
                    f"row {row}: the picture span at token {column - 1} names no picture; pass `pixel_values`, "
                    "as a reference that is longer than the span travels only there"
                )
            if name not in opened:
                opened[name] = pixels(open_picture(name), self.config.visual["image_size"])
            pictures.append(opened[name])
        return torch.stack(pictures).to(input_ids.device)

    def encode_pictures(self, input_ids, pixel_values=None, image_features=None):
        """Spans [n, 2] of `input_ids` and the features [n, n_queries, hidden] that go there, or None without pictures.

        Raises ValueError when the number of pictures is not the number of spans.
        """
        spans = self.picture_spans(input_ids)
        given = image_features if image_features is not None else pixel_values
        if given is not None and len(given) != len(spans):
            raise ValueError(
                f"{len(given)} pictures were passed but the ids hold {len(spans)} picture spans; pass one each"
            )
        if len(spans) == 0:
            return None
        if image_features is None:
            if pixel_values is None:
                pixel_values = self.open_referenced(input_ids, spans)
            image_features = self.visual(pixel_values.to(self.visual.conv1.weight.device))
        return spans, image_features

    def embed(self, input_ids, pixel_values=None, image_features=None):
        """Embeddings [batch, length, hidden] of the ids, with the features of each picture in place of its span."""
        embeds = self.wte(input_ids)
        pictures = self.encode_pictures(input_ids, pixel_values, image_features)
        if pictures is not None:
            spans, features = pictures
            columns = spans[:, 1:] + torch.arange(self.config.image_span_tokens, device=spans.device)
            return embeds.index_put((spans[:, :1].expand_as(columns), columns), features.to(embeds))
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            # Other ranks may hold pictures: every rank must take part in the reduction of the vision tower's gradients.
            size = self.config.visual["image_size"]
            embeds = embeds + 0 * self.visual(embeds.new_zeros(1, 3, size, size)).sum()
        return embeds

    def positions(self, attention_mask, past_length, length, device):
        """Index of each token in its own sequence: [batch | 1, length]; padding on the left counts as not there."""
        index = torch.arange(past_length, past_length + length, device=device)[None]
        if attention_mask is None or attention_mask.dim() != 2:
            return index
        first = (attention_mask != 0).int().argmax(dim=1, keepdim=True).to(device)
        return (index - first).clamp(min=0)

    def rotary(self, position_ids, attention_mask, past_key_values, longest):
        """RotaryTables of this pass; alpha is a function of each sequence's own prefill length, kept with its cache.

        `longest` bounds the number of tokens in any sequence, so that short ones cost nothing.
        """
        alpha = None
        if not self.training and self.config.use_dynamic_ntk:
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                alpha = getattr(past_key_values, "ntk_alpha", None)
            elif longest > self.config.seq_length:
                last = position_ids if attention_mask is None else position_ids.masked_fill(attention_mask == 0, 0)
                alpha = ntk_alpha(last.max(dim=1).values + 1, self.config.seq_length)
            if past_key_values is not None:
                past_key_values.ntk_alpha = alpha
        scale_queries = self.config.use_logn_attn and not self.training and longest > self.config.seq_length
        return rotary_tables(self.config, position_ids, alpha, scale_queries)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        pixel_values=None,
        image_features=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_features)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        length, past_length = inputs_embeds.shape[1], 0 if past_key_values is None else past_key_values.get_seq_length()
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        flat_mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        longest = past_length + length
        if position_ids is None:
            position_ids = self.positions(flat_mask, past_length, length, inputs_embeds.device)
        elif longest <= self.config.seq_length and not self.training:
            longest = max(longest, int(position_ids.max()) + 1)
        rotary = self.rotary(position_ids, flat_mask, past_key_values, longest)

        hidden, every_hidden, every_weights = self.drop(inputs_embeds), [], []
        for block in self.h:
            every_hidden.append(hidden)
            hidden, weights = block(hidden, mask, rotary, past_key_values=past_key_values, **kwargs)
            every_weights.append(weights)
        hidden = self.ln_f(hidden)
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wants_weights = self.config.output_attentions if output_attentions is None else output_attentions
        if wants_weights and every_weights[-1] is None:
            raise ValueError('attention weights exist only with attn_implementation="eager"; load the model with it')
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*every_hidden, hidden) if wants_hidden else None,
            attentions=tuple(every_weights) if wants_weights else None,
        )


class QWenLMHeadModel(ChatMixin, QWenPreTrainedModel, GenerationMixin):
    """The complete Qwen-VL model: next-token logits, loss, generation and chat.

    Inputs: `input_ids` [batch, length] or `inputs_embeds`; `attention_mask` [batch, length], 1 where a token is;
    `position_ids` [batch, length]; pictures as `pixel_values` [pictures, 3, size, size] or ready `image_features`
    [pictures, n_queries, hidden], in reading order of their spans. Without either, the pictures named by the ids
    are opened.
    """

    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # the class name alone would select no loss
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def set_input_embeddings(self, value):
        self.transformer.wte = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        pixel_values=None,
        image_features=None,
        token_type_ids=None,  # the tokenizer returns them, the model has none
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        **kwargs,
    ):
        loss_kwargs = {key: kwargs.pop(key) for key in ("num_items_in_batch",) if key in kwargs}
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels.long(), vocab_size=self.config.vocab_size, **loss_kwargs
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return result if wants_dict else result.to_tuple()

    def generate(self, inputs=None, *args, stop_words_ids=None, logits_processor=None, **kwargs):
        """Generated ids, as transformers' `generate`; `stop_words_ids` is a list of id lists after which a row ends."""
        if stop_words_ids is not None:
            config = kwargs.get("generation_config") or self.generation_config
            eos = kwargs.get("eos_token_id", config.eos_token_id)
            logits_processor = [*(logits_processor or []), *stop_word_processors(stop_words_ids, eos)]
        return super().generate(inputs, *args, logits_processor=logits_processor, **kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        """Positions by the rule of `QWenModel.positions`, where transformers would count the ones of the mask."""
        past, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        past_length = 0 if past is None else past.get_seq_length()
        length = inputs_tensor.shape[1] if mask is None else mask.shape[1]
        length = max(length, past_length)
        return self.transformer.positions(mask, 0, length, inputs_tensor.device).expand(inputs_tensor.shape[0], -1)

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        if kwargs.get("past_key_values") is not None and not kwargs.get("is_first_iteration", False):
            kwargs.pop("image_features", None)  # transformers drops only `pixel_values` after the prefill
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Rows repeated for beams or several answers; each row's pictures are encoded once and repeated with it."""
        pixel_values, features = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_features", None)
        if expand_size > 1 and input_ids is not None:
            pictures = self.transformer.encode_pictures(input_ids, pixel_values, features)
            if pictures is not None:
                spans, features = pictures
                by_row = [features[spans[:, 0] == row] for row in range(input_ids.shape[0])]
                pixel_values, features = None, torch.cat([part for part in by_row for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if pixel_values is not None:
            model_kwargs["pixel_values"] = pixel_values
        if features is not None:
            model_kwargs["image_features"] = features
        return input_ids, model_kwargs


QWenLMHeadModel.register_for_auto_class("AutoModelForCausalLM")
