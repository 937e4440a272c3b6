"""What `generate` asks of a VisualChat model: which keys are images', and each step's inputs, in chunks, for beams."""

from copy import copy
from dataclasses import fields
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from .configuration_visual_chat import VisualChatConfig
from .vision import refuse_both

CACHE_NAMES = ("cache", "past_key_values")
"""The names by which transformers hands a cache from call to call, the newer first; it is `cache` from 5.24 on."""

CACHE = next(name for name in CACHE_NAMES if name in {each.name for each in fields(BaseModelOutputWithPast)})
"""The one of this transformers, for arguments and for outputs."""


def kinds_of_keys(
    config: VisualChatConfig,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor,
    kinds: torch.Tensor | None,
    cached: int,
) -> torch.Tensor:
    """The kind of every key [B, K], 0 text and 1 image; read off the ids where nothing is cached and nobody says."""
    if kinds is not None:
        return kinds
    if input_ids is not None and (cached == 0 or config.attention == "causal"):
        return (input_ids == config.image_token_id).long()
    if config.attention == "causal":
        return torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    raise ValueError(
        "mm_token_type_ids are missing; with a filled cache or with inputs_embeds the kinds of the keys"
        " cannot be read off input_ids: pass [B, K] with 1 for image tokens, cached keys included"
    )


def kinds_in_generation(
    config: VisualChatConfig,
    input_ids: torch.Tensor,
    least: int,
    attention_mask: torch.Tensor | None,
    kinds: torch.Tensor | None,
    is_prompt: bool,
) -> torch.Tensor | None:
    """The kind of every key [B, K] of one step of `generate`, whose ids [B, L <= K] end where the keys end.

    least: there are at least so many keys. kinds: what was handed in, perhaps for an earlier and shorter text.
    is_prompt: what it does not cover was written by the user, so there may be images; otherwise it was generated,
    and is text. None where ids do not say what is in the cache.
    """
    ids = input_ids.shape[1]
    given = (each.shape[1] for each in (kinds, attention_mask) if each is not None and each.ndim == 2)
    keys = max(ids, least, *given)
    if kinds is None:
        return (input_ids == config.image_token_id).long() if ids == keys else None
    missing = keys - kinds.shape[1]
    if not missing:
        return kinds
    added = kinds.new_zeros(kinds.shape[0], missing)
    if is_prompt and ids >= missing:
        added += (input_ids[:, ids - missing :] == config.image_token_id).to(added)
    return torch.cat([kinds, added], dim=1)


def images_in_rows(kinds: torch.Tensor, image_tokens: int) -> list[int]:
    """How many images of `image_tokens` tokens each row of kinds [B, K] has."""
    return (kinds.sum(dim=1) // image_tokens).tolist()


def pixels_of_new_tokens(
    kinds: torch.Tensor, cached: int, pixel_values: torch.Tensor, image_tokens: int
) -> torch.Tensor | None:
    """Of the images [N, ...] of whole rows, those that are not among the `cached` keys; None where all are.

    As they are where they are not so many, for then they are those of the new tokens already.
    """
    known, whole = images_in_rows(kinds[:, :cached], image_tokens), images_in_rows(kinds, image_tokens)
    if sum(whole) == sum(known):
        return None
    if pixel_values.shape[0] != sum(whole):
        return pixel_values
    rows = zip(pixel_values.split(whole), known, strict=True)
    return torch.cat([images[first:] for images, first in rows])


def positions_of(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions [B, K] that count real tokens only, so that padding on the left changes nothing."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


class VisualChatGenerationMixin(GenerationMixin):
    """transformers' `generate` for a model that is told of image tokens by their kinds, and may have cached images."""

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
    ) -> CausalLMOutputWithPast:
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
