"""Qwen-VL: a causal decoder in which the embeddings of each picture replace those of its span.

Source: docs/checkpoint_format.md sections 2-4.
"""

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .cache_qwen import GrowingCache
from .chat_qwen import ChatMixin, stop_word_processors
from .configuration_qwen import QWenConfig
from .decoder_qwen import QWenBlock, RMSNorm, is_flash_attention, ntk_alpha, rotary_tables
from .image_loading_qwen import open_picture
from .image_processing_qwen import pixels
from .loading_qwen import LoadingMixin
from .logits_qwen import CheckedGeneration
from .loss_qwen import target_index as index_of_targets
from .loss_qwen import target_losses
from .placement_qwen import PlacedModel, execution_device
from .visual import CrossAttention, Resampler, VisionTower, sincos_table

PLAIN_STD = 0.22  # of random embeddings of a plain patch; those of a patch with edges are of 1


def picture_spans(input_ids, start_id, length):
    """Row and first column of the ids inside each complete picture span, in reading order: [spans, 2].

    `start_id` is that of <img>, the next one that of </img>; `length` is the number of ids between them.
    Raises ValueError for a span that is cut: its features would have no place.
    """
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


def patch_filters(like):
    """Random filters of patches, of the shape, dtype and device of a tensor [width, 3, patch, patch].

    A plain patch, above all a white one, must not drown the table of positions; yet shapes are learned from edges.
    """
    filters = torch.empty_like(like).normal_(std=like[0].numel() ** -0.5)
    return filters - (1 - PLAIN_STD) * filters.mean((2, 3), keepdim=True)


class QWenPreTrainedModel(LoadingMixin, PlacedModel, PreTrainedModel):
    """Loading, saving and random initialisation of Qwen-VL weights."""

    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QWenBlock", "VisualAttentionBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _set_gradient_checkpointing(self, *args, **kwargs):
        super()._set_gradient_checkpointing(*args, **kwargs)
        for module in self.modules():  # a frozen ViT has no backward pass to recompute anything for
            if isinstance(module, VisionTower) and not module.vit_trains():
                for block in module.transformer.resblocks:
                    block.gradient_checkpointing = False

    @classmethod
    def _can_set_attn_implementation(cls):
        return True  # transformers guesses from the source text of this file, and the interface is used in visual.py

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            init.copy_(module.weight, patch_filters(module.weight))
        elif isinstance(module, (nn.Linear, nn.Embedding)):
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
        self.runs_vision_always = False  # for processes that each hold a part of every weight: also without pictures
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

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

    def encode_pictures(
        self,
        input_ids,
        pixel_values=None,
        image_features=None,
        vit_features=None,
        picture_index=None,
        spans=None,
    ):
        """Spans [n, 2] of `input_ids` and the features [n, n_queries, hidden] that go there, or None without pictures.

        `spans`, where the caller has them, are not searched for, so that nothing waits for the device.
        Raises ValueError when the number of pictures is not the number of spans.
        """
        if spans is None:
            spans = picture_spans(input_ids, self.config.visual["image_start_id"], self.config.image_span_tokens)
        given = [pictures for pictures in (image_features, vit_features, pixel_values) if pictures is not None]
        if given and (number := len(given[0] if picture_index is None else picture_index)) != len(spans):
            raise ValueError(
                f"{number} pictures were passed but the ids hold {len(spans)} picture spans; pass one each"
            )
        if len(spans) == 0:
            return None
        if image_features is None:
            if not given:
                pixel_values = self.open_referenced(input_ids, spans)
            if vit_features is None:
                # Not by the name of a weight: ZeRO-3 would gather it here, where processes without pictures do not.
                pixel_values = pixel_values.to(execution_device(self.visual))
            image_features = self.visual(pixel_values, vit_features)
        return spans, image_features if picture_index is None else image_features[picture_index]

    def embed(self, input_ids, **pictures):
        """Embeddings [batch, length, hidden] of the ids, with the features of each picture in place of its span.

        pictures: what `encode_pictures` takes.
        """
        embeds = self.wte(input_ids)
        pictures = self.encode_pictures(input_ids, **pictures)
        if pictures is not None:
            spans, features = pictures
            spans = spans.to(embeds.device)
            columns = spans[:, 1:] + torch.arange(self.config.image_span_tokens, device=spans.device)
            return embeds.index_put((spans[:, :1].expand_as(columns), columns), features.to(embeds))
        if self.runs_vision_always or self.trains_vision_with_others():
            # Other processes may have pictures, and wait for this one where they gather weights or reduce gradients.
            size = self.config.visual["image_size"]
            embeds = embeds + 0 * self.visual(embeds.new_zeros(1, 3, size, size)).sum()
        return embeds

    def trains_vision_with_others(self):
        """Whether this pass is a training step of several processes in which a part of the vision tower trains."""
        if not self.training or not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return False
        return any(parameter.requires_grad for parameter in self.visual.parameters())

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

    def forward_packed(self, inputs_embeds, position_ids, segment_lengths, **kwargs):
        """Hidden states [1, length, hidden] of a row of whole samples, each as if it were alone.

        `segment_lengths`: ints that add up to the length, on the host, so that nothing waits for the device;
        `position_ids` [1, length] restart in each segment. Training only: neither a cache nor scaling past the
        trained length. Raises ValueError for several rows: put all samples of a batch into one.
        """
        if inputs_embeds.shape[0] != 1 or sum(segment_lengths) != inputs_embeds.shape[1] or position_ids is None:
            raise ValueError(
                "segment_lengths needs one row of that many tokens, with position_ids that restart in each"
            )
        rotary = rotary_tables(self.config, position_ids, alpha=None, scale_queries=False)
        if is_flash_attention(self.config):
            ends = torch.tensor([0, *segment_lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            ends, longest = ends.to(inputs_embeds.device, non_blocking=True), max(segment_lengths)
            kwargs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        else:
            kwargs["segment_lengths"] = segment_lengths
        hidden = self.drop(inputs_embeds)
        for block in self.h:
            hidden, _ = block(hidden, None, rotary, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden))

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        pixel_values=None,
        image_features=None,
        vit_features=None,
        picture_index=None,
        picture_spans=None,
        segment_lengths=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed(
                input_ids,
                pixel_values=pixel_values,
                image_features=image_features,
                vit_features=vit_features,
                picture_index=picture_index,
                spans=picture_spans,
            )
        if segment_lengths is not None:
            return self.forward_packed(inputs_embeds, position_ids, segment_lengths, **kwargs)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not self.training:
            past_key_values = GrowingCache(self.config)
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


class QWenLMHeadModel(ChatMixin, CheckedGeneration, QWenPreTrainedModel, GenerationMixin):
    """The complete Qwen-VL model: next-token logits, loss, generation and chat.

    Inputs: `input_ids` [batch, length] or `inputs_embeds`; `attention_mask` [batch, length], 1 where a token is;
    `position_ids` [batch, length]; `segment_lengths` for a packed row (`QWenModel.forward_packed`);
    pictures as `pixel_values` [pictures, 3, size, size], the ViT's `vit_features` [pictures, patches, width], or ready
    `image_features` [pictures, n_queries, hidden], in reading order of their spans; with `picture_index` [spans], in
    any order, each once. Without any of them, the pictures named by the ids are opened.
    `picture_spans` [spans, 2] and `target_index` [targets] are what the functions of these names say of ids and labels:
    given along, they spare a step on a GPU from waiting for what it computes.
    In training mode a call with `labels` returns the loss and no logits; with `per_target_loss`, in either mode, the
    loss is [targets], one value for each target in reading order instead of their mean.
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
        vit_features=None,
        picture_index=None,
        picture_spans=None,
        segment_lengths=None,
        token_type_ids=None,  # the tokenizer returns them, the model has none
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        target_index=None,
        per_target_loss=False,
        **kwargs,
    ):
        loss_kwargs = {key: kwargs.pop(key) for key in ("num_items_in_batch",) if key in kwargs}
        if "loss_weights" in kwargs:
            raise ValueError(
                "loss_weights: the loss of this model weighs all targets alike; train with finetune.py, or leave the "
                "weights of the samples out"
            )
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            vit_features=vit_features,
            picture_index=picture_index,
            picture_spans=picture_spans,
            segment_lengths=segment_lengths,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        loss = logits = None
        if labels is not None and (self.training or per_target_loss):
            loss = self.loss_of_targets(
                output.last_hidden_state, labels.long(), target_index, per_target_loss, **loss_kwargs
            )
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(output.last_hidden_state[:, kept])
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

    def loss_of_targets(self, hidden, labels, target_index=None, per_target=False, num_items_in_batch=None):
        """Cross-entropy where a label is; logits are computed there alone, which is a small part of all positions.

        hidden: [batch, length, hidden]; labels: [batch, length], -100 where there is no target; target_index:
        what `loss_qwen.target_index` says of the labels. The sum over the targets divided by `num_items_in_batch`, by
        default their number; with `per_target`, [targets] in float32.
        """
        index = index_of_targets(labels) if target_index is None else target_index
        states, targets = hidden.flatten(0, 1)[index], labels.flatten()[index + 1]
        losses = target_losses(self.lm_head, states, targets, vocab_size=self.config.vocab_size)
        if per_target:
            return losses
        return losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)

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

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """The cache that transformers would make; ours where that is the plain dynamic one."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        made = model_kwargs.get("past_key_values")
        if given is None and type(made) is DynamicCache and not made.offloading:
            model_kwargs["past_key_values"] = GrowingCache(self.config)

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
