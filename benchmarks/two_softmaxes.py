"""Multi-modal causal attention as it was computed in 2023, written anew from its description: to compare with.

Scores of every token with every token, twice, under two masks; two softmaxes in float32; their sum applied to the
values. The masks here are made at once (that system built them in a loop over tokens, which is not timed), and a
text token that sees no image gets nothing from the second softmax. A gate, which it did not have, is a factor on that.
"""

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "two_softmaxes"


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    kinds: torch.Tensor,
    scaling: float,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """query [B, H, Q, D], key and value [B, Hkv, K, D], visible bool [B, 1, Q, K], kinds [B, K] (1 image), of
    which the last Q are the queries', gate [H] -> [B, Q, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    rows, keys = query.shape[2], key.shape[2]
    image_keys = (kinds == 1)[:, None, None, :]  # [B, 1, 1, K]
    image_rows = (kinds[:, -rows:] == 1)[:, None, :, None]  # [B, 1, Q, 1]
    itself = torch.eye(rows, keys, dtype=torch.bool, device=query.device).roll(keys - rows, dims=1)
    first = torch.where(image_rows, itself, visible & ~image_keys)
    second = visible & image_keys & ~image_rows
    scores = query @ key.transpose(2, 3) * scaling
    of_images = _softmax(scores, second) * second.any(-1, keepdim=True)
    weights = _softmax(scores, first) + (of_images if gate is None else of_images * gate[:, None, None])
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


def _softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lowest = torch.finfo(scores.dtype).min
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.where(mask, scores, lowest).softmax(dim=-1, dtype=exact)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    mm_token_type_ids: torch.Tensor,
    **_kwargs,
) -> tuple[torch.Tensor, None]:
    return dense(query, key, value, attention_mask, mm_token_type_ids, scaling), None


def _mask(*, allow_is_causal_skip: bool = True, **kwargs) -> torch.Tensor:
    return sdpa_mask(**kwargs, allow_is_causal_skip=False)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
