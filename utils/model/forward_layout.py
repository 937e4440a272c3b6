"""The layout of a forward of our own model: made before the decoder is entered, from what only we know.

A stock decoder would make a mask, and MMCA a layout from its rule (`mmca_visibility`). Here no mask is made,
and where the number of image tokens follows from the pictures, nothing has to be asked of a GPU.
"""

import torch
from transformers import Cache, PreTrainedConfig

from .images_beside import NO_MASK
from .mmca_kernels import prepare_layout
from .mmca_layout import Layout, build_layout


def layout_of_forward(
    config: PreTrainedConfig,
    kinds: torch.Tensor,
    embedded: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Cache | None,
    image_tokens: int | None,
) -> Layout | None:
    """The decoder's argument `mmca_layout`, or None where the decoder's own rule has to be asked.

    config: the decoder's. kinds: [B, K]. embedded: [B, Q, D]. attention_mask: [B, K] or None; then position_ids
    [B, Q] that restart are conversations side by side. image_tokens: among the K keys, where it is known.
    """
    queries = embedded.shape[1]
    cached = 0 if cache is None else cache.get_seq_length()
    if (
        config._attn_implementation != "mmca"
        or torch.compiler.is_compiling()
        or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        or (getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None))
        or (cache is not None and cache.is_compileable)
        or kinds.shape[1] != cached + queries
        or (attention_mask is not None and attention_mask.shape != kinds.shape)
    ):
        return None
    valid = begins = None
    on_cpu = kinds.device.type == "cpu"
    if attention_mask is not None:
        valid = attention_mask.to(kinds.device).bool()
        valid = None if on_cpu and bool(valid.all()) else valid
    elif position_ids is not None and cache is None:
        steps = position_ids.to(kinds.device).expand(kinds.shape[0], -1).diff(dim=1)
        begins = torch.nn.functional.pad(steps != 1, (1, 0))
        begins = None if on_cpu and not bool(begins.any()) else begins
    known = image_tokens if not on_cpu and not cached else None
    layout = build_layout(kinds, queries, valid, begins, known)
    prepare_layout(layout, config, embedded.device, embedded.dtype)
    return layout


def no_mask(device: torch.device) -> torch.Tensor:
    """In place of a mask that nobody reads."""
    return NO_MASK.to(device)
