"""The VisualChat model: encoder, projector and decoder, in the shape of transformers' LLaVA."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.integrations import deepspeed as integration
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from .cache_name import CACHE, CACHE_NAMES
from .computed_rows import ROWS, ComputedRows, picks_rows, text_rows
from .configuration_visual_chat import VisualChatConfig, check_images_path
from .encoding import encode
from .forward_layout import layout_of_forward, no_mask
from .head import Head
from .image_places import (
    encoded_features,
    enter_encoder_anyway,
    images_in_rows,
    kinds_in_generation,
    kinds_of_keys,
    pixels_of_new_tokens,
    place_features,
    place_summaries,
    refuse_both,
)
from .lora import LoraSettings, merge_lora
from .mmca import IMPLEMENTATIONS, OWN, ImageGate, attention_of_parts, check_decoder
from .projector import build_projector
from .supervised_loss import Supervised, supervised_loss
from .vision import vision_family


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


AUTO_CLASSES = {
    "AutoModel": "VisualChatModel",
    "AutoModelForImageTextToText": "VisualChatForConditionalGeneration",
    "AutoModelForMultimodalLM": "VisualChatForConditionalGeneration",
}
"""Which of our models each Auto class loads; a checkpoint's configuration says so to those without this project."""


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
        from .loading import load_model  # here, because it needs these classes

        return load_model(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """As transformers' own: every weight that this model has, adapters merged into theirs.

        Any weight may have learnt by now, so the folder no longer says which base models they came from.
        """
        config = self.config
        before = {
            name: getattr(config, name)
            for name in ("lora", "frozen_from", "trained_parts", "checkpoint_form")
        }
        if config.lora:
            state = kwargs.get("state_dict") or self.state_dict()
            kwargs["state_dict"] = merge_lora(state, LoraSettings(**config.lora))
        config.lora = config.frozen_from = config.trained_parts = None
        config.checkpoint_form = "full"
        name_auto_classes(config)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            for name, value in before.items():
                setattr(config, name, value)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """Switch the encoder's implementation, or the decoder's attention (see `mmca.attention_of_parts`)."""
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
        _choose_attention(config)
        self.vision_tower = vision_family(config.vision_config).model._from_config(config.vision_config)
        self.multi_modal_projector = build_projector(
            config.projector_type, config.vision_config, config.text_config.hidden_size
        )
        self.language_model = AutoModel.from_config(config.text_config)
        gated = config.image_gate == "head"
        self.image_gate = ImageGate(self.language_model.config) if gated else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

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
        [N, S, D]. `output_hidden_states` and `output_attentions` ask for the encoder's too.
        """
        vision, asked = self.config.vision_config, {}
        for name in ("output_hidden_states", "output_attentions"):
            wanted = kwargs.get(name)
            if getattr(vision, name, False) if wanted is None else wanted:
                asked[name] = True
        if asked:
            outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), **asked)
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
            position_ids = _positions(attention_mask)[:, -inputs_embeds.shape[1] :]
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
                kwargs["mmca_layout"], attention_mask = layout, no_mask(inputs_embeds.device)
        kwargs |= self.gate_arguments()
        rows = self._computed_rows(kwargs, mm_token_type_ids, inputs_embeds, features, wanted_rows)
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

    def _computed_rows(
        self,
        kwargs: dict[str, Any],
        kinds: torch.Tensor,
        embedded: torch.Tensor,
        features: torch.Tensor | None,
        wanted: torch.Tensor | None,
    ) -> ComputedRows | None:
        """Which rows go through the decoder's layers; None for all through everything."""
        image_layers = "full" if features is None else self.config.image_layers
        if wanted is not None and not self._may_leave_out(kwargs):
            wanted = None
        if wanted is None and image_layers == "full":
            return None
        if not picks_rows(self.language_model):
            if image_layers == "full":
                return None
            raise ValueError(
                f"a decoder of type {self.language_model.config.model_type} has no parts that image tokens can be"
                f" kept out of, as image_layers {image_layers} asks; pass image_layers full"
            )
        if features is None or image_layers == "full":
            return ComputedRows(wanted)
        is_text = kinds[:, -embedded.shape[1] :].to(embedded.device) != 1
        layout, text = kwargs.get("mmca_layout"), None
        if layout is not None:
            text = layout.rows
        elif not torch.compiler.is_compiling():
            text = text_rows(is_text, features.shape[:2].numel())
        return ComputedRows(wanted, image_layers, is_text, text)

    def _may_leave_out(self, kwargs: dict[str, Any]) -> bool:
        """Whether the last layer may leave out rows: nobody asked for all states, and attention takes arguments."""
        config = self.language_model.config
        for name in ("output_hidden_states", "output_attentions"):
            asked = kwargs.get(name)
            if getattr(config, name, False) if asked is None else asked:
                return False
        return config._attn_implementation in IMPLEMENTATIONS.values()

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
            vision = self.config.vision_config
            encode_image, shape = self._features, (1, 3, vision.image_size, vision.image_size)
            if mm_encoder_outputs is not None:  # other processes have the encoder's features ready
                family = vision_family(vision)
                encode_image, shape = (
                    self._projected,
                    (1, family.sequence_length(vision), family.width(vision)),
                )
            blank = torch.zeros(shape, device=inputs_embeds.device)
            return enter_encoder_anyway(inputs_embeds, encode_image, blank, self.training), None
        features = self._features(pixel_values) if encoded is None else encoded  # [N, S, D]
        return place_features(inputs_embeds, places, features, image_tokens), features


class VisualChatForConditionalGeneration(VisualChatPreTrainedModel, GenerationMixin):
    """The whole model: answers, and learns to."""

    accepts_loss_kwargs = True  # the Trainer hands over num_items_in_batch

    def __init__(self, config: VisualChatConfig) -> None:
        super().__init__(config)
        self.model = VisualChatModel(config)
        self.lm_head = Head(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_parts(
        cls,
        config: VisualChatConfig,
        vision_tower: nn.Module,
        projector: nn.Module,
        language_model: nn.Module,
        lm_head: nn.Module,
        image_gate: nn.Module | None = None,
    ) -> "VisualChatForConditionalGeneration":
        """Join parts that exist already; `config` holds the parts' own configurations.

        Also where the parts are partitioned over processes: nothing is initialised or copied. image_gate: where the
        configuration has one.
        """
        if (config.image_gate == "none") != (image_gate is None):
            raise ValueError(f"the configuration says image_gate {config.image_gate}, but another was given")
        with outside_zero3(), torch.device("meta"):
            model = cls(config)
        model.model.vision_tower = vision_tower
        model.model.multi_modal_projector = projector
        model.model.language_model = language_model
        model.model.image_gate = image_gate
        model.lm_head = Head.of(lm_head)
        model.generation_config = GenerationConfig.from_model_config(config.text_config)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

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
            wanted_rows = _last_rows(input_ids if inputs_embeds is None else inputs_embeds, logits_to_keep)
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
            losses = supervised_loss(self.lm_head, hidden, supervised, num_items_in_batch)
            loss, token_losses = losses.loss, losses.token_losses
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

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One step's inputs: the kinds of all keys, cached ones too, and the images that are not in the cache yet.

        transformers would slice the kinds to the new tokens, and drop the images of a draft model's first step.
        """
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        new = inputs.get("inputs_embeds")
        new = inputs["input_ids"] if new is None else new  # [B, Q, ...]
        cache = inputs.get(CACHE)
        known = 0 if cache is None or mm_token_type_ids is not None else cache.get_seq_length()
        kinds = kinds_in_generation(
            self.config,
            input_ids,
            known + new.shape[1],
            attention_mask,
            mm_token_type_ids,
            bool(is_first_iteration),
        )
        if kinds is not None:
            inputs["mm_token_type_ids"] = kinds
        cached = known if kinds is None else kinds.shape[1] - new.shape[1]
        if not is_first_iteration and cached:
            return inputs
        if mm_encoder_outputs is not None:
            inputs["mm_encoder_outputs"] = mm_encoder_outputs
        if pixel_values is not None:
            if cached and kinds is not None:
                pixel_values = pixels_of_new_tokens(kinds, cached, pixel_values, self.config.image_seq_length)
            inputs["pixel_values"] = pixel_values
        return inputs

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *_args: Any, **_kwargs: Any
    ) -> dict[str, Any]:
        """Leave pixels as they are; transformers would encode them before it knows which ones are in the cache."""
        return model_kwargs

    def _prefill(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> VisualChatOutput:
        """As transformers' own; for chunks, the images are encoded first: features can be cut, pixels cannot.

        In one piece where chunks cannot be: embeddings in place of ids, summaries of whole images, processes that
        enter the encoder together (ZeRO-3), and transformers that cannot cut features (before 5.24).
        """
        cache = model_kwargs.get(CACHE)
        cached = 0 if cache is None else int(cache.get_seq_length())
        given = model_kwargs.get("mm_token_type_ids")
        kinds = kinds_in_generation(
            self.config,
            input_ids,
            max(cached + 1, getattr(generation_config, "_mask_length", 0)),
            model_kwargs.get("attention_mask"),
            given,
            is_first_iteration,
        )
        if given is not None:  # whole before transformers appends those of generated tokens
            model_kwargs["mm_token_type_ids"] = kinds
        if generation_config.prefill_chunk_size is None:
            return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        embedded = is_first_iteration and model_kwargs.get("inputs_embeds") is not None
        whole = embedded or self.config.image_summary_token_id is not None
        if whole or is_deepspeed_zero3_enabled() or not hasattr(self, "_supports_mm_encoder_outputs"):
            generation_config = copy(generation_config)
            generation_config.prefill_chunk_size = None
            return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)
        if kinds is not None:
            model_kwargs["mm_token_type_ids"] = kinds
        is_first_iteration = is_first_iteration or not cached  # a draft model's first step
        pixel_values = model_kwargs.pop("pixel_values", None)
        if pixel_values is not None and is_first_iteration:
            refuse_both(pixel_values, model_kwargs.get("mm_encoder_outputs"))
            if cached and kinds is not None:
                pixel_values = pixels_of_new_tokens(kinds, cached, pixel_values, self.config.image_seq_length)
            if pixel_values is not None:
                features = self.get_image_features(pixel_values, return_dict=True)
                model_kwargs["mm_encoder_outputs"] = {"image": features}
        return super()._prefill(input_ids, generation_config, model_kwargs, is_first_iteration)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor | None, dict[str, Any]]:
        """Repeat rows for beams or samples; the images of a row repeat together, so their order holds."""
        pixels = model_kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1:
            kinds = model_kwargs.get("mm_token_type_ids")
            kinds = input_ids == self.config.image_token_id if kinds is None else kinds
            counts = images_in_rows(kinds, self.config.image_seq_length)
            if sum(counts) != pixels.shape[0]:  # those of new tokens alone
                cached = model_kwargs[CACHE].get_seq_length() if model_kwargs.get(CACHE) is not None else 0
                counts = images_in_rows(kinds[:, cached:], self.config.image_seq_length)
            pixels = torch.cat([row for row in pixels.split(counts) for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if pixels is not None:
            model_kwargs["pixel_values"] = pixels
        return input_ids, model_kwargs


def name_auto_classes(config: VisualChatConfig) -> None:
    """Let a saved configuration say which class each Auto class loads."""
    module = __name__.rpartition(".")[2]
    named = {auto: f"{module}.{name}" for auto, name in AUTO_CLASSES.items()}
    config.auto_map = {**(getattr(config, "auto_map", None) or {}), **named}


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Build a skeleton as if nothing were partitioned: it has no weights that processes could share out."""
    reference = integration._hf_deepspeed_config_weak_ref
    alive = reference() if reference is not None else None
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if alive is not None:
            integration.set_hf_deepspeed_config(alive)


def _choose_attention(config: VisualChatConfig) -> None:
    """Give the decoder the attention that the configuration names; causal keeps a stock one asked for."""
    whole = config._attn_implementation
    if whole in OWN:  # asked for the whole model, but the encoder has none of the kind
        config._attn_implementation = {"": "sdpa", "vision_config": None, "text_config": whole}
        config.attention = whole
    check_images_path(config.attention, config.image_layers, config.image_gate)  # each may be chosen anew
    asked = config.text_config._attn_implementation
    if config.attention != "causal" or asked in (None, *OWN):
        config.text_config._attn_implementation = IMPLEMENTATIONS[config.attention]


def _last_rows(inputs: torch.Tensor, count: int) -> torch.Tensor | None:
    """The last `count` tokens of each row of [B, Q, ...], counted through the batch; None where that is all."""
    batch, queries = inputs.shape[:2]
    if count >= queries:
        return None
    places = torch.arange(batch * queries, device=inputs.device).view(batch, queries)
    return places[:, queries - count :].flatten()


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions [B, K] that count real tokens only, so that padding on the left changes nothing."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
