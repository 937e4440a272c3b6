"""Multi-modal causal attention (MMCA) for any decoder that uses transformers' attention interface.

For a query at position i, with T(i) the text positions <= i and I(i) the image positions <= i of the same
conversation:

- an image token attends to itself only: out_i = v_i;
- a text token: out_i = softmax over T(i) applied to v, plus softmax over I(i) applied to v. The two are
  normalised separately and summed, not renormalised. Where I(i) is empty its term is exactly zero. With an
  `ImageGate`, the second term counts as many times as the layer's and head's learned factor says.

Source: Yao et al., "DeepSpeed-VisualChat", 2023 (arXiv:2309.14327), section 4.1.

Importing this module registers two attention implementations. "mmca" is the above; "cross" has the same
visibility, but one joint softmax over T(i) and I(i): a baseline with the same weights. Both run a stock
decoder:

    config = LlamaConfig(..., attn_implementation="mmca")
    decoder(inputs_embeds=x, attention_mask=m, mm_token_type_ids=t)  # m, t [B, K]: all keys, also cached
    decoder(..., image_gate=gate())  # gate: an ImageGate, under "mmca" alone

The kinds t (0 text, 1 image) are required: leaving them out raises, because an image read as text would go
unnoticed. Text alone is t = 0 everywhere. Several conversations in one row are told apart as transformers
does it: `attention_mask=None`, `position_ids` that restart with each conversation, and `use_cache=False`.

The layout (who sees whom) is made once per forward and shared by all layers; `attend` reads nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from .mmca_layout import Layout, Visibility, kernels, visibility
from .mmca_masked import MaskedLayout, attend_masked, build_masked_layout

_SCORES = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
"""What a decoder may hand its attention that changes the scores: caps, sinks, biases, a choice of keys."""

_LAYOUT = "_mmca_layout"  # a mask of the user's own carries the layout made from it


class ImageGate(nn.Module):
    """A learned factor for each layer and head on what text reads of images, begun at 0: then images are not seen,
    and the decoder is what it was before.

    Held in float32 in models of fewer bits, unless whoever trains casts all weights (as DeepSpeed does, whose optimizer
    then holds them in float32). A parameter for each layer, because those that ZeRO shares out may get their gradients
    once a step, and checkpointed layers may go backwards one by one.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        """config: the decoder's."""
        super().__init__()
        for layer in range(config.num_hidden_layers):
            factors = torch.zeros(config.num_attention_heads, dtype=torch.float32)
            self.register_parameter(str(layer), nn.Parameter(factors))

    def forward(self) -> tuple[torch.Tensor, ...]:
        """The decoder's argument `image_gate`: factors [H] of each layer. Copies, for parameters that are shared out
        over processes are there only while their module runs.
        """
        return tuple(factors.clone() for factors in self.parameters())


class _Reached(torch.autograd.Function):
    """Gives the gate a gradient, 0 where no image was read: processes must get those of a step in one order."""

    @staticmethod
    def forward(ctx: FunctionCtx, out: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grad, torch.zeros_like(ctx.saved_tensors[0])


def layout_of(
    module: nn.Module,
    mask: Visibility | torch.Tensor | None,
    kinds: torch.Tensor | None,
    keys: int,
    sliding_window: int | None = None,
    joint: bool = False,
) -> Layout | MaskedLayout:
    """The layout of this forward, made by the first layer that asks and kept on the mask for the others.

    The decoder's own visibility counts: under a sliding window, all softmaxes read within it.
    """
    is_table = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.ndim == 4
    if mask is None or not (is_table or isinstance(mask, Visibility)):
        found = "none" if mask is None else f"{mask.dtype} of shape {list(mask.shape)}"
        raise ValueError(
            f"MMCA needs a boolean [B, 1, Q, K] mask and got {found}: the decoder around"
            f" {type(module).__name__} does not make masks through AttentionMaskInterface; use another one"
        )
    if kinds is None:
        raise ValueError(
            "MMCA needs mm_token_type_ids [B, K] (0 text, 1 image, one for every key) as an argument of the"
            " decoder's forward; pass zeros where there is no image"
        )
    if kinds.shape[1] > keys and sliding_window is None:
        raise ValueError(
            f"mm_token_type_ids cover {kinds.shape[1]} keys, but attention reads only {keys}; pass [B, K]"
            " with K = cached + new tokens"
        )
    if isinstance(mask, Visibility):
        return mask.layout(kinds, keys, joint)
    known = getattr(mask, _LAYOUT, None)
    if known is not None and known[0] is kinds and known[1] == joint:
        return known[2]
    layout = build_masked_layout(mask[..., :keys], kinds[:, -keys:], joint)  # a sliding cache keeps the last
    if not torch.compiler.is_compiling():
        setattr(mask, _LAYOUT, (kinds, joint, layout))
    return layout


def attend(
    layout: Layout | MaskedLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention under a layout: query [B, H, Q, D], key and value [B, Hkv, K, D], gate [H] -> [B, Q, H, D].

    Under autocast in its dtype, as torch's own attention is.
    """
    device = query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # not on meta
        query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
    layout = layout.to(query.device)
    if isinstance(layout, MaskedLayout):
        out = attend_masked(layout, query, key, value, scaling, dropout, gate)
    else:
        out = kernels().attend(layout, query, key, value, scaling, dropout, gate)
    if gate is not None and gate.requires_grad and torch.is_grad_enabled():
        out = _Reached.apply(out, gate)
    return out


def mmca_reference(
    visible: torch.Tensor,
    kinds: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    joint: bool = False,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition itself, which computes all of Q x K and asks no tensor for a number, as exported graphs need it.

    visible: bool [B, 1, Q, K], what the decoder lets each query see, itself last. kinds: [B, K], 0 text and 1
    image. query [B, H, Q, D], key and value [B, Hkv, K, D], gate [H] on the images' term -> [B, Q, H, D].
    """
    keys, groups = key.shape[2], query.shape[1] // key.shape[1]
    visible, is_image = visible[..., :keys], (kinds == 1)[:, -keys:]
    is_image = F.pad(is_image, (0, keys - is_image.shape[1]))[:, None, None]  # [B, 1, 1, K]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = torch.zeros_like(query)
    text = visible if joint else visible & ~is_image
    for seen in (text,) if joint else (text, visible & is_image):
        blank = ~seen.any(dim=-1, keepdim=True)  # a softmax needs a key; its result is taken out
        term = F.scaled_dot_product_attention(query, key, value, attn_mask=seen | blank, scale=scaling)
        term = term.masked_fill(blank, 0.0)
        if gate is not None and seen is not text:
            term = term * gate.to(term.dtype)[:, None, None]
        out = out + term
    places = (visible * torch.arange(keys, device=visible.device)).amax(dim=-1, keepdim=True)  # [B, 1, Q, 1]
    own = value.gather(2, places.expand(-1, value.shape[1], -1, value.shape[3]))
    asks_nobody = is_image.expand(-1, -1, places.shape[2], -1).gather(3, places)
    return torch.where(asks_nobody, own, out).transpose(1, 2)


def _attention_function(joint: bool):
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Visibility | torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        mm_token_type_ids: torch.Tensor | None = None,
        sliding_window: int | None = None,
        image_kv: Any = None,
        mmca_layout: Layout | None = None,
        image_gate: Sequence[torch.Tensor] | None = None,
        **more,
    ) -> tuple[torch.Tensor, None]:
        """transformers' interface: query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D].

        image_kv: reads text over keys and values of images that were computed earlier (`chat.image_kv`).
        """
        if unknown := [name for name in _SCORES if more.get(name) is not None]:
            raise ValueError(
                f"{type(module).__name__} passes {', '.join(unknown)} to attention, which changes its scores;"
                " multi-modal causal attention does not support this"
            )
        gate = None if image_gate is None else _gate_of(module, image_gate, query, joint)
        if image_kv is not None:
            return image_kv.attend(module.layer_idx, query, key, value, scaling, gate), None
        exported = torch.compiler.is_exporting() and isinstance(attention_mask, torch.Tensor)
        if exported and mm_token_type_ids is not None:
            given = attention_mask, mm_token_type_ids, query, key, value
            return mmca_reference(*given, scaling, joint, gate), None
        layout: Layout | MaskedLayout | None = mmca_layout
        if layout is None:
            keys = key.shape[2]
            layout = layout_of(module, attention_mask, mm_token_type_ids, keys, sliding_window, joint)
        return attend(layout, query, key, value, scaling, dropout, gate), None

    return attention


def _gate_of(
    module: nn.Module, image_gate: Sequence[torch.Tensor], query: torch.Tensor, joint: bool
) -> torch.Tensor:
    """The factors [H] of this layer."""
    if joint:
        raise ValueError(
            "an image gate needs attention mmca: under cross images have no softmax of their own"
        )
    layer = getattr(module, "layer_idx", None)
    if layer is None or image_gate[layer].shape != (query.shape[1],):
        raise ValueError(
            f"{type(module).__name__} does not say its layer's number, or has other heads than its configuration says;"
            " an image gate cannot be used with this decoder"
        )
    return image_gate[layer].to(query.device)


for _name, _joint in {"mmca": False, "cross": True}.items():
    AttentionInterface.register(_name, _attention_function(_joint))
    AttentionMaskInterface.register(_name, visibility)
