"""Images in a sequence: which keys are theirs, their features on the placeholders, text-only batches."""

from collections.abc import Callable

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_visual_chat import VisualChatConfig


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


def refuse_both(
    pixel_values: torch.Tensor | None, outputs: dict[str, BaseModelOutputWithPooling] | None
) -> None:
    """Raises `ValueError` where images are given as pixels and as `mm_encoder_outputs`."""
    if pixel_values is not None and (outputs or {}).get("image") is not None:
        raise ValueError("pass either pixel_values or mm_encoder_outputs")


def encoded_features(
    outputs: dict[str, BaseModelOutputWithPooling] | None, project: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor | None:
    """The images' features in `mm_encoder_outputs`, [N, S, D]; rows [n, D] and lists become one of [1, n, D].

    `project` makes them of the encoder's, [N, S', Dv], where there are no others. None for no image.
    """
    image = (outputs or {}).get("image")
    if image is None:
        return None
    features = image.pooler_output
    if features is None:
        return project(image.last_hidden_state) if len(image.last_hidden_state) else None
    if isinstance(features, torch.Tensor) and features.ndim == 3:
        return features
    parts = [features] if isinstance(features, torch.Tensor) else features
    return torch.cat([part.flatten(0, -2) for part in parts])[None]


def place_features(
    inputs_embeds: torch.Tensor, places: torch.Tensor, features: torch.Tensor, wanted: int | None
) -> torch.Tensor:
    """Features [N, S, D] on the `wanted` places [B, Q] (True) of embeddings [B, Q, D], in order of appearance.

    Raises `ValueError` with both counts where they differ; wanted None: not known, so not asked.
    """
    features = features.to(inputs_embeds)
    given = features.shape[0] * features.shape[1]
    if wanted is not None and wanted != given:
        raise ValueError(
            f"there are {wanted} image tokens, but {given} image features: {features.shape[0]} images of"
            f" {features.shape[1]} tokens each; every image needs exactly that many placeholders"
        )
    return inputs_embeds.masked_scatter(places[..., None], features)


def place_summaries(inputs_embeds: torch.Tensor, kinds: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The mean of each image's features [N, S, D] on the text token behind it; embeddings [B, Q, D], kinds [B, K]."""
    is_image = kinds.to(inputs_embeds.device) == 1
    behind = torch.zeros_like(is_image)
    behind[:, 1:] = is_image[:, :-1] & ~is_image[:, 1:]
    places = behind[:, -inputs_embeds.shape[1] :, None]
    return inputs_embeds.masked_scatter(places, features.mean(dim=1).to(inputs_embeds))


def enter_encoder_anyway(
    inputs_embeds: torch.Tensor,
    get_image_features: Callable[[torch.Tensor], torch.Tensor],
    blank: torch.Tensor,
    training: bool,
) -> torch.Tensor:
    """Under several processes, a text-only batch runs one `blank` image whose features count for nothing.

    ZeRO-3 gathers the encoder's and the projector's weights, and every stage reduces the projector's gradients, on
    all ranks at once: a rank that stays away would leave the others waiting. Where the embedding is frozen, one process
    does so too: perhaps nothing else in the batch learns.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    several = several and torch.distributed.get_world_size() > 1
    alone = not training or inputs_embeds.requires_grad or not torch.is_grad_enabled()
    if alone and (not several or not (training or is_deepspeed_zero3_enabled())):
        return inputs_embeds
    return inputs_embeds + 0.0 * get_image_features(blank).sum().to(inputs_embeds)
