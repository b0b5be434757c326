"""Qwen-VL: a causal decoder in which the features of each image replace the embeddings of its span.

Source: docs/checkpoint_format.md sections 2-4.
"""

from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .cache_qwen import GrowingCache
from .chat_qwen import ChatMixin
from .configuration_qwen import QWenConfig
from .decoder_qwen import QWenBlock, RMSNorm, RotaryTables, is_flash_attention, ntk_alpha, rotary_tables
from .engine_qwen import ServedModel, check_engine_pass, is_engine_pass
from .generation_qwen import GenerationInputs
from .image_embedding_qwen import ImageEmbedding
from .image_loading_qwen import OpenImage
from .loading_qwen import LoadingMixin
from .logits_qwen import CheckedGeneration
from .loss_qwen import target_index as index_of_targets  # training only, as all of loss_qwen
from .loss_qwen import target_losses
from .placement_qwen import PlacedModel
from .visual import CrossAttention, Resampler, VisionTower, sincos_table


class QWenPreTrainedModel(ServedModel, LoadingMixin, PlacedModel, PreTrainedModel):
    """Loading, saving and random initialization of Qwen-VL weights."""

    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QWenBlock", "VisualAttentionBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """Turn gradient checkpointing on or off. Training only."""
        super()._set_gradient_checkpointing(*args, **kwargs)
        for module in self.modules():  # a frozen ViT has no backward pass that could recompute it
            if isinstance(module, VisionTower) and not module.vit_trains():
                blocks: Any = module.transformer.resblocks  # torch lets a module hold only tensors and modules
                for block in blocks:
                    block.gradient_checkpointing = False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers searches this file alone, but attention_qwen.py uses the interface

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
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


class QWenModel(ImageEmbedding, QWenPreTrainedModel):
    """Embeddings, decoder blocks and vision tower: ids and images to hidden states."""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.wte: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.emb_dropout_prob)
        self.h = nn.ModuleList(QWenBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTower(config)
        self.runs_vision_always = False  # True for training with weights divided among ranks
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value

    def positions(
        self, attention_mask: torch.Tensor | None, past_length: int, length: int, device: torch.device
    ) -> torch.Tensor:
        """Return the index of each token in its sequence, without left padding: [batch | 1, length]."""
        index = torch.arange(past_length, past_length + length, device=device)[None]
        if attention_mask is None or attention_mask.dim() != 2:
            return index
        first = (attention_mask != 0).int().argmax(dim=1, keepdim=True).to(device)
        return (index - first).clamp(min=0)

    def rotary(
        self,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        longest: int,
    ) -> RotaryTables:
        """Return the tables of this pass. The NTK factor depends on the prefill length, and stays with the cache.

        longest: a bound for the number of tokens in any sequence, so short ones cost nothing.
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

    def forward_packed(
        self,
        inputs_embeds: torch.Tensor,
        position_ids: torch.Tensor | None,
        segment_lengths: list[int],
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return hidden states [1, length, hidden] of a row of whole samples, each computed as if it were alone.

        segment_lengths: ints on the CPU that add up to the length, so no transfer from the device is needed.
        position_ids: [1, length], restarting in each segment. Training only: no cache, no scaling past the trained
        length. Raise ValueError for several rows; all samples of a batch belong into one.
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
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        vit_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_spans: torch.Tensor | None = None,
        open_image: OpenImage | None = None,
        segment_lengths: list[int] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return hidden states [batch, length, hidden]; arguments as in QWenLMHeadModel."""
        in_engine = is_engine_pass(self.config.get_text_config(), kwargs)
        images = (pixel_values, image_features, vit_features, image_index, image_spans, open_image)
        if in_engine:
            check_engine_pass(position_ids, past_key_values, images)
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.wte(input_ids) if in_engine else self.embed(input_ids, *images)
        elif inputs_embeds is None or input_ids is not None:
            raise ValueError("pass either input_ids or inputs_embeds")
        if segment_lengths is not None:
            return self.forward_packed(inputs_embeds, position_ids, segment_lengths, **kwargs)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None and not (self.training or in_engine):
            past_key_values = GrowingCache(self.config)
        mask, rotary = self.mask_and_rotary(inputs_embeds, attention_mask, position_ids, past_key_values, in_engine)
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

    def mask_and_rotary(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        in_engine: bool,
    ) -> tuple[Any, RotaryTables]:
        """Return the attention mask and the RotaryTables for embeddings [batch, length, hidden].

        Without `position_ids`, they come from `positions`. An engine has made the mask that it needs, and its positions
        are never scaled nor read by the CPU, which would wait for the device.
        """
        if in_engine and position_ids is not None:
            return attention_mask, rotary_tables(self.config, position_ids, alpha=None, scale_queries=False)
        mask = create_causal_mask(
            config=self.config.get_text_config(),
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        length, past_length = inputs_embeds.shape[1], 0 if past_key_values is None else past_key_values.get_seq_length()
        flat_mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        longest = past_length + length
        if position_ids is None:
            position_ids = self.positions(flat_mask, past_length, length, inputs_embeds.device)
        elif longest <= self.config.seq_length and not self.training:
            longest = max(longest, int(position_ids.max()) + 1)
        return mask, self.rotary(position_ids, flat_mask, past_key_values, longest)


def taken_loss_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Remove the arguments of the loss from `kwargs`, and return them. Raise ValueError for weights of samples."""
    arguments = {"num_items_in_batch": kwargs.pop("num_items_in_batch")} if "num_items_in_batch" in kwargs else {}
    if "loss_weights" in kwargs:
        raise ValueError(
            "loss_weights: the loss of this model weighs all targets alike; train with finetune.py, or leave the "
            "weights of the samples out"
        )
    return arguments


class QWenLMHeadModel(GenerationInputs, ChatMixin, CheckedGeneration, QWenPreTrainedModel, GenerationMixin):
    """The complete Qwen-VL model: next-token logits, loss, generation and chat.

    Inputs: `input_ids` [batch, length] or `inputs_embeds`; `attention_mask` [batch, length], 1 for a token;
    `position_ids` [batch, length]; `segment_lengths` for a packed row (`QWenModel.forward_packed`).
    Images: `pixel_values` [images, 3, size, size], the ViT's `vit_features` [images, patches, width], or
    `image_features` [images, n_queries, hidden], in reading order of their spans. With `image_index` [spans], each
    image comes once, in any order. Without any of them, the images that the ids name are opened, from any path or
    address unless `open_image` is given (`image_loading_qwen.OpenImage`; `refuse_images` opens nothing).
    Training: `image_spans` [spans, 2] and `target_index` [targets] are the results of the functions of these names,
    so a step on a GPU need not wait for them. `generate` takes `image_spans` too: an <img> elsewhere is a plain token.
    In training mode a call with `labels` returns the loss and no logits. With `per_target_loss`, in either mode, the
    loss is [targets], one value for each target in reading order instead of their mean.
    """

    main_input_name = "input_ids"

    def __init__(self, config: QWenConfig) -> None:
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # the class name alone would select no loss
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        vit_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_spans: torch.Tensor | None = None,
        segment_lengths: list[int] | None = None,
        token_type_ids: torch.Tensor | None = None,  # the tokenizer returns them, the model has none
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        target_index: torch.Tensor | None = None,
        per_target_loss: bool = False,
        open_image: OpenImage | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits [batch, length, vocabulary] or the loss, or both; see the class for the arguments."""
        loss_kwargs = taken_loss_arguments(kwargs)
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            vit_features=vit_features,
            image_index=image_index,
            image_spans=image_spans,
            open_image=open_image,
            segment_lengths=segment_lengths,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        result = self.scored(output, labels, target_index, per_target_loss, logits_to_keep, **loss_kwargs)
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return result if wants_dict else result.to_tuple()

    def scored(
        self,
        output: BaseModelOutputWithPast,
        labels: torch.Tensor | None,
        target_index: torch.Tensor | None,
        per_target_loss: bool,
        logits_to_keep: int | torch.Tensor,
        **loss_kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the decoder's output with logits, the loss, or both; arguments as in `forward`."""
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
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def loss_of_targets(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        target_index: torch.Tensor | None = None,
        per_target: bool = False,
        num_items_in_batch: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the cross-entropy of the targets. To save memory, no other logits are computed.

        hidden: [batch, length, hidden]. labels: [batch, length], -100 without a target. target_index: the result of
        `loss_qwen.target_index` for the labels. The loss is the sum over the targets divided by `num_items_in_batch`,
        by default their number. With `per_target` it is [targets] in float32.
        """
        index = index_of_targets(labels) if target_index is None else target_index
        states, targets = hidden.flatten(0, 1)[index], labels.flatten()[index + 1]
        losses = target_losses(self.lm_head, states, targets, vocab_size=self.config.vocab_size)
        if per_target:
            return losses
        return losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)


QWenModel.register_for_auto_class("AutoModel")
QWenLMHeadModel.register_for_auto_class("AutoModelForCausalLM")
