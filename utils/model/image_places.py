"""Images in a sequence: which keys are theirs, their features on the placeholders, text-only batches."""

from collections.abc import Callable

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

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
    if input_ids is not None and cached == 0:
        return (input_ids == config.image_token_id).long()
    if config.attention == "causal":
        return torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    raise ValueError(
        "mm_token_type_ids are missing; with a filled cache or with inputs_embeds the kinds of the keys"
        " cannot be read off input_ids: pass [B, K] with 1 for image tokens, cached keys included"
    )


def place_features(inputs_embeds: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Features [N, S, D] on the places [B, Q] (True) of embeddings [B, Q, D], in order of appearance.

    Raises `ValueError` with both counts where they differ.
    """
    features = features.to(inputs_embeds)
    wanted, given = int(places.sum()), features.shape[0] * features.shape[1]
    if wanted != given:
        raise ValueError(
            f"there are {wanted} image tokens, but {given} image features: {features.shape[0]} images of"
            f" {features.shape[1]} tokens each; every image needs exactly that many placeholders"
        )
    return inputs_embeds.masked_scatter(places[..., None], features)


def enter_encoder_anyway(
    inputs_embeds: torch.Tensor,
    get_image_features: Callable[[torch.Tensor], torch.Tensor],
    blank: torch.Tensor,
    training: bool,
) -> torch.Tensor:
    """Under several processes, a text-only batch runs one `blank` image whose features count for nothing.

    ZeRO-3 gathers the encoder's and the projector's weights, and every stage reduces the projector's
    gradients, on all ranks at once: a rank that stays away would leave the others waiting.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    several = several and torch.distributed.get_world_size() > 1
    if not several or not (training or is_deepspeed_zero3_enabled()):
        return inputs_embeds
    return inputs_embeds + 0.0 * get_image_features(blank).sum().to(inputs_embeds)
