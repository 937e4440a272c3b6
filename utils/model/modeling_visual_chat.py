"""The VisualChat model: encoder, projector and decoder, in the shape of transformers' LLaVA."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Cache, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from .computed_rows import ROWS, last_rows, rows_to_compute
from .configuration_visual_chat import (
    OWN,
    VisualChatConfig,
    attention_of_parts,
    check_decoder,
    check_images_path,
    choose_attention,
)
from .generation_visual_chat import CACHE, CACHE_NAMES, VisualChatGenerationMixin, kinds_of_keys, positions_of
from .loading import load_model, save_model
from .loss import Head, Supervised, supervised_loss
from .mmca import ImageGate
from .mmca_layout import NO_MASK, layout_of_forward
from .projector import build_projector
from .vision import (
    encode,
    encoded_features,
    enter_encoder_anyway,
    place_features,
    place_summaries,
    refuse_both,
    run_encoder,
    vision_family,
)


@dataclass
class VisualChatModelOutput(BaseModelOutputWithPast):
    """The decoder's output and the projected image features [N, S, D]."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class VisualChatOutput(CausalLMOutputWithPast):
    """loss: scalar; logits: [B, Q', V], or None where labels were given; image_hidden_states: [N, S, D].

    token_losses: [n], the loss of each supervised token in row-major order, without a graph.
    """

    image_hidden_states: torch.Tensor | None = None
    token_losses: torch.Tensor | None = None


class VisualChatPreTrainedModel(PreTrainedModel):
    """What both models share with transformers' machinery."""

    config_class = VisualChatConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LinearProjector", "VitProjector", "PerceiverProjector"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["image_gate"]  # noqa: RUF012
    _skip_keys_device_placement = list(CACHE_NAMES)  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load either form of checkpoint, strictly: a missing or unexpected key is an error that names it.

        The trained-only form takes the frozen weights from the base models that its config.json names.
        `base_models={"language_model": ..., "vision_model": ...}` says where they are on this machine.
        Otherwise as transformers' `from_pretrained`: all weights can learn.
        """
        load, whole = super().from_pretrained, VisualChatForConditionalGeneration
        return load_model(cls, load, pretrained_model_name_or_path, *args, whole_class=whole, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """As transformers' own: every weight that this model has, adapters merged into theirs."""
        save_model(self, super().save_pretrained, save_directory, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """Switch the encoder's implementation, or the decoder's attention (see `attention_of_parts`)."""
        parts = attention_of_parts(self.config, attn_implementation)
        attention = parts["text_config"] if parts["text_config"] in OWN else self.config.attention
        check_images_path(attention, self.config.image_layers, self.config.image_gate)
        super().set_attn_implementation(parts, **kwargs)
        self.config.attention = attention


class VisualChatModel(VisualChatPreTrainedModel):
    """Everything but the language-modelling head."""

    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]  # noqa: RUF012 (transformers' own form)

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        choose_attention(config)
        self.vision_tower = vision_family(config.vision_config).model._from_config(config.vision_config)
        self.multi_modal_projector = build_projector(
            config.projector_type, config.vision_config, config.text_config.hidden_size
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.image_gate = ImageGate(self.language_model.config) if config.image_gate == "head" else None
        self.post_init()

    def train(self, mode: bool = True) -> "VisualChatModel":
        """As always, but for an encoder that does not learn: its dropout stays off."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision_tower.parameters()):
            self.vision_tower.eval()
        return self

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Pixels [N, 3, H, W] through encoder and projector.

        `last_hidden_state` is the encoder's [N, S', Dv], `pooler_output` what the decoder reads, in its width
        [N, S, D]. `output_hidden_states` and `output_attentions` ask for the encoder's too: then all images go through
        it together, and with a graph.
        """
        asked = {name: True for name in ("output_hidden_states", "output_attentions") if kwargs.get(name)}
        if asked:
            outputs = run_encoder(self.vision_tower, pixel_values, **asked)
        else:
            outputs = BaseModelOutputWithPooling(last_hidden_state=encode(self.vision_tower, pixel_values))
        outputs.pooler_output = self._projected(outputs.last_hidden_state)
        return outputs

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.get_image_features(pixel_values, return_dict=True).pooler_output

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        """The encoder's features [N, S', Dv] -> [N, S, D]; quantised weights say nothing about precision."""
        weights = (each for each in self.multi_modal_projector.parameters() if each.is_floating_point())
        return self.multi_modal_projector(features.to(next(weights).dtype))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        wanted_rows: torch.Tensor | None = None,
        image_tokens: int | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VisualChatModelOutput:
        """As `VisualChatForConditionalGeneration.forward`, with hidden states [B, Q, D] instead of logits.

        wanted_rows: which rows [n] of the B * Q will be read; the others may hold anything. None for all.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        refuse_both(pixel_values, mm_encoder_outputs)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        cache = past_key_values if cache is None else cache
        cached = cache.get_seq_length() if cache is not None else 0
        mm_token_type_ids = kinds_of_keys(self.config, input_ids, inputs_embeds, mm_token_type_ids, cached)
        inputs_embeds, features = self._place_images(
            inputs_embeds, mm_token_type_ids, pixel_values, mm_encoder_outputs, image_tokens
        )
        if features is not None and self.config.image_summary_token_id is not None:
            of_images = features.flatten(0, 1).unflatten(0, (-1, self.config.image_seq_length))
            inputs_embeds = place_summaries(inputs_embeds, mm_token_type_ids, of_images)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions_of(attention_mask)[:, -inputs_embeds.shape[1] :]
        elif use_cache is None and cache is None and attention_mask is None:
            use_cache = False  # perhaps packed: a decoder that fills a cache ignores restarting positions
        check_decoder(self.config, self.language_model.config)
        if self.config.attention != "causal":
            kwargs["mm_token_type_ids"] = mm_token_type_ids
            layout = layout_of_forward(
                self.language_model.config,
                mm_token_type_ids.to(inputs_embeds.device),
                inputs_embeds,
                attention_mask,
                position_ids,
                cache,
                image_tokens=0 if features is None else features.shape[:2].numel(),
            )
            if layout is not None:
                kwargs["mmca_layout"], attention_mask = layout, NO_MASK.to(inputs_embeds.device)
        kwargs |= self.gate_arguments()
        asked = kwargs, mm_token_type_ids, inputs_embeds, features, wanted_rows
        rows = rows_to_compute(self.language_model, self.config.image_layers, *asked)
        if rows is not None:
            kwargs[ROWS] = rows
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        return VisualChatModelOutput(**outputs, image_hidden_states=features)

    def gate_arguments(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """The decoder's arguments where there is a gate on what is read of images."""
        return {} if self.image_gate is None else {"image_gate": self.image_gate()}

    def _place_images(
        self,
        inputs_embeds: torch.Tensor,
        kinds: torch.Tensor,
        pixel_values: torch.Tensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
        image_tokens: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image features on the placeholders, in order of appearance; embeddings stay [B, Q, D]."""
        queries = inputs_embeds.shape[1]
        encoded = encoded_features(mm_encoder_outputs, self._projected)  # [N, S, D]
        without_images = pixel_values is None and encoded is None
        if without_images and queries == 1:
            return inputs_embeds, None  # a step of generation
        places = kinds[:, -queries:].to(inputs_embeds.device) == 1  # [B, Q]
        if image_tokens is None and not torch.compiler.is_exporting():  # a graph asks no tensor for a number
            image_tokens = int(places.sum())
        if without_images:
            if image_tokens:
                raise ValueError(f"there are {image_tokens} image tokens, but no pixel_values")
            family = vision_family(vision := self.config.vision_config)
            encode_image, shape = self._features, (1, 3, *2 * (family.image_size(vision),))
            if mm_encoder_outputs is not None:  # other processes have the encoder's features ready
                encode_image, shape = (
                    self._projected,
                    (1, family.sequence_length(vision), family.width(vision)),
                )
            blank = torch.zeros(shape, device=inputs_embeds.device)
            return enter_encoder_anyway(inputs_embeds, encode_image, blank, self.training), None
        features = self._features(pixel_values) if encoded is None else encoded  # [N, S, D]
        return place_features(inputs_embeds, places, features, image_tokens), features


class VisualChatForConditionalGeneration(VisualChatPreTrainedModel, VisualChatGenerationMixin):
    """The whole model: answers, and learns to."""

    accepts_loss_kwargs = True  # the Trainer hands over num_items_in_batch

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        self.model = VisualChatModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, ...]:
        """As `VisualChatModel.get_image_features`: `pooler_output` [N, S, D] is what the decoder reads."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        image_tokens: int | None = None,
        supervised_tokens: int | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VisualChatOutput:
        """One forward over Q new tokens of B rows; K keys = cached + new.

        input_ids: [B, Q]. attention_mask, mm_token_type_ids: [B, K], cached keys included; the kinds (0 text,
        1 image) default to where input_ids is the image token. No attention_mask and restarting position_ids
        [B, Q]: packed rows. pixel_values: [N, 3, H, W], the images whose placeholders stand in input_ids, in
        order of appearance. labels: [B, Q], -100 where not learned. image_tokens, supervised_tokens: how many
        there are among the Q (of labels, those that are not -100 and not at the start of a row), as the
        collator counts them; without them a GPU is waited for to count them.

        mm_encoder_outputs: in place of pixel_values, {"image": what `get_image_features` returned}; its
        `pooler_output` [N, S, D], or rows [n, D], or a list of either, has one row per placeholder among the Q. With
        `last_hidden_state` [N, S', Dv] alone, the projector is still to come; N may be 0.

        cache: keys and values of earlier calls, `past_key_values` in transformers before 5.24; either name serves.

        Without labels: logits [B, Q, V], or of the last `logits_to_keep` tokens. With labels: the loss, the
        sum over supervised tokens divided by num_items_in_batch (their number here, where not given), the
        loss of each of these tokens, and no logits; the head runs at supervised rows only. No supervised
        token: a loss of 0 with a graph.
        """
        if labels is not None and use_cache is None:
            use_cache = False
        supervised = wanted_rows = None
        if labels is not None:
            supervised = Supervised.of(labels, supervised_tokens)
            wanted_rows = supervised.rows
        elif isinstance(logits_to_keep, int) and logits_to_keep > 0:
            wanted_rows = last_rows(input_ids if inputs_embeds is None else inputs_embeds, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=mm_token_type_ids,
            pixel_values=pixel_values,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            wanted_rows=wanted_rows,
            image_tokens=image_tokens,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # [B, Q, D]
        loss = logits = token_losses = None
        if supervised is not None:
            loss, token_losses = supervised_loss(self.lm_head, hidden, supervised, num_items_in_batch)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])  # -0 keeps all
        return VisualChatOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            token_losses=token_losses,
            **{CACHE: getattr(outputs, CACHE)},
        )
