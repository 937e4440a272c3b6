"""Multi-modal causal attention out of the pieces of a plan, each computed by a flash kernel without a mask.

Each piece gives its rows' result and the logarithm of the sum of their exponentials (lse). Two pieces of the
same rows make one softmax: weights exp(lse_1) and exp(lse_2), normalised. Backwards no such care is needed:
with the whole softmax's lse, each piece's kernel gives its share of the gradients, and shares add up.
Source: Dao et al., "FlashAttention", 2022 (arXiv:2205.14135), sections 3.1 and B.2.

What is kept for the backward pass: queries, keys and values of text, keys and values of images, the two
results and their lse. That grows with the length, and is less than causal attention keeps.
"""

from collections.abc import Sequence

import torch
from torch.autograd.function import FunctionCtx, once_differentiable

from .mmca_layout import Layout
from .mmca_plan import Alike, Plan

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def takes_pieces(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel takes such tensors: on the CPU, values as wide as queries."""
    return (
        query.device.type in ("cpu", "meta")  # meta: the memory plan runs a CPU's step on shapes
        and query.dtype in DTYPES
        and query.shape[-1] == value.shape[-1]
        and hasattr(torch.ops.aten, _FORWARD)
        and hasattr(torch.ops.aten, _BACKWARD)
    )


def attend_in_pieces(
    layout: Layout,
    plan: Plan,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """query [B, H, Q, D], key and value [B, Hkv, K, D] -> [B, Q, H, D]."""
    return _Attention.apply(query, key, value, layout, plan, scaling)


class _Attention(torch.autograd.Function):
    """All pieces as one function: gradients of keys that many pieces read are added up in place."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        plan: Plan,
        scaling: float | None,
    ) -> torch.Tensor:
        batch, heads, rows, width = query.shape
        asking = take(query, layout.rows)  # [1, H, T, D]
        text_keys, text_values = take(key, layout.text_keys), take(value, layout.text_keys)
        text, text_lse = _softmax(asking, text_keys, text_values, plan.text_calls, scaling)
        image = image_lse = image_keys = image_values = None
        if plan.image:
            image_keys, image_values = take(key, layout.image_keys), take(value, layout.image_keys)
            seeing = asking[:, :, plan.image_top :]
            image, image_lse = _softmax(seeing, image_keys, image_values, plan.image_calls, scaling)
        out = query.new_empty(batch * rows, heads, width)
        own = image_values if plan.image and layout.own_are_images else take(value, layout.own)
        _put_own(out, layout.others, own[0].transpose(0, 1))
        for call in plan.placed:
            target = _asked(out.transpose(0, 1)[None], call)
            if call.piece.first:
                torch.add(_asking(text, call), _asking(image, call, plan.image_top), out=target)
            else:
                target.copy_(_asking(text, call))
        ctx.save_for_backward(
            asking, text_keys, text_values, text, text_lse, image_keys, image_values, image, image_lse
        )
        ctx.layout, ctx.plan, ctx.scaling, ctx.shapes = layout, plan, scaling, (query.shape, key.shape)
        return out.view(batch, rows, heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        asking, text_keys, text_values, text, text_lse, *images = ctx.saved_tensors
        image_keys, image_values, image, image_lse = images
        layout, plan, scaling = ctx.layout, ctx.plan, ctx.scaling
        (batch, heads, rows, width), (_, shared, keys, _) = ctx.shapes
        flat = grad.reshape(batch * rows, heads, width)
        share = flat.index_select(0, layout.rows).transpose(0, 1)[None]  # [1, H, T, D]
        own = flat.index_select(0, layout.others)  # [N, Hkv, D] once summed
        if heads != shared:
            own = own.view(-1, shared, heads // shared, width).sum(dim=2)
        seen = layout.image_keys if plan.image else layout.image_keys[:0]
        d_keys = _blank(grad, batch * keys, shared, width, (layout.text_keys, seen))
        d_values = _blank(grad, batch * keys, shared, width, (layout.text_keys, layout.own))
        states = asking, text_keys, text_values
        whole = plan.text_whole(text_keys.shape[2])
        d_query, d_key, d_value = _softmax_backward(
            share, states, text, text_lse, plan.text_calls, scaling, [None] * 3, (True, whole, whole)
        )
        _put(d_keys, layout.text_keys, d_key[0].transpose(0, 1))
        _put(d_values, layout.text_keys, d_value[0].transpose(0, 1))
        if not (plan.image and layout.own_are_images):
            _put(d_values, layout.own, own)
        if plan.image:
            top = plan.image_top
            if not layout.own_are_images:
                own = d_values.index_select(0, layout.image_keys)
            states = asking[:, :, top:], image_keys, image_values
            into = d_query[:, :, top:], None, own.transpose(0, 1)[None]
            _, d_key, d_value = _softmax_backward(
                share[:, :, top:], states, image, image_lse, plan.image_calls, scaling, into
            )
            _put(d_keys, layout.image_keys, d_key[0].transpose(0, 1))
            _put(d_values, layout.image_keys, d_value[0].transpose(0, 1))
        d_queries = _blank(grad, batch * rows, heads, width, (layout.rows, layout.others))
        _put(d_queries, layout.rows, d_query[0].transpose(0, 1))
        _wide(d_queries).index_fill_(0, layout.others, 0)
        back = ((d_queries, rows), (d_keys, keys), (d_values, keys))
        shaped = (tensor.view(batch, length, -1, width).transpose(1, 2) for tensor, length in back)
        return *shaped, None, None, None


def _blank(
    like: torch.Tensor, rows: int, heads: int, width: int, written: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """[rows, H, D] of zeros, or of anything where all of it will be `written`: places, each once."""
    whole = sum(places.numel() for places in written) == rows
    return (like.new_empty if whole else like.new_zeros)(rows, heads, width)


def rows_of(states: torch.Tensor) -> torch.Tensor:
    """[B, H, S, ...] as [B * S, H, ...], a view where the heads of a token stand together in memory."""
    return states.transpose(1, 2).flatten(0, 1)


def _one_row(states: torch.Tensor) -> torch.Tensor:
    """[B, H, S, ...] as [1, H, B * S, ...], a view where `rows_of` is one: so what a kernel gives."""
    return rows_of(states).transpose(0, 1)[None]


def take(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The places, in order, of all rows of [B, H, S, D] together: [1, H, T, D]; a view where they are neighbours."""
    if places.numel() == states.shape[0] * states.shape[2]:
        return _one_row(states)
    if span := _span(places):
        return rows_of(states)[span].transpose(0, 1)[None]
    if states.shape[0] == 1 and states.stride(1) > states.stride(2):  # heads apart, as caches keep them
        return states.index_select(2, places)
    return rows_of(states).index_select(0, places).transpose(0, 1)[None]


def _span(places: torch.Tensor) -> slice | None:
    """Places in order as a slice, where they are neighbours and asking is free."""
    if places.device.type != "cpu" or not places.numel():
        return None
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == places.numel() else None


def _put_own(out: torch.Tensor, places: torch.Tensor, own: torch.Tensor) -> None:
    """Values [N, Hkv, D] as the result of rows of [B * Q, H, D], for every query head that shares them."""
    grouped = out.unflatten(1, (own.shape[1], -1))  # [B * Q, Hkv, G, D]
    own = own[:, :, None].expand(-1, -1, grouped.shape[2], -1)
    if span := _span(places):
        grouped[span] = own
    else:
        _put(grouped, places, own)


def _put(into: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> None:
    """Write rows [N, ..., D] to their places in [M, ..., D]."""
    _wide(into).index_copy_(0, places, _wide(rows))


def _wide(states: torch.Tensor) -> torch.Tensor:
    """The same memory [..., D] in elements of 16 bytes, where D allows: torch writes by index element by element."""
    whole = states.shape[-1] * states.element_size() % 16 == 0
    return states.view(torch.complex128) if whole else states


def _softmax(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    calls: tuple[Alike, ...],
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax: its result like query [1, H, T, D] and lse [1, H, T]; rows that no piece touches hold anything."""
    kernel = getattr(torch.ops.aten, _FORWARD)
    _, heads, rows, width = query.shape
    out = lse = None
    for call in calls:
        states = _asking(query, call), _asked(key, call), _asked(value, call)
        part, part_lse = kernel(*states, 0.0, call.piece.causal, scale=scaling)  # [n, H, R, D], [n, H, R]
        if out is None and part.shape[0] * part.shape[2] == rows:
            out, lse = _one_row(part), _one_row(part_lse)
            continue
        if out is None:
            out = query.new_empty(1, rows, heads, width).transpose(1, 2)
            lse = part_lse.new_empty(1, rows, heads).transpose(1, 2)
        part_of_out, part_of_lse = _asking(out, call), _asking(lse, call)
        if call.piece.first:
            part_of_out.copy_(part)
            part_of_lse.copy_(part_lse)
        else:
            together = torch.logaddexp(part_of_lse, part_lse)
            part_of_out.lerp_(part, (part_lse - together).exp_()[..., None].to(part.dtype))
            part_of_lse.copy_(together)
    return out, lse


def _softmax_backward(
    grad: torch.Tensor,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    calls: tuple[Alike, ...],
    scaling: float | None,
    into: Sequence[torch.Tensor | None],
    whole: Sequence[bool] = (False, False, False),
) -> list[torch.Tensor]:
    """The gradients of one softmax, of queries, keys and values, added to what `into` holds of them.

    None is a gradient that nothing is in yet; whole: whether the calls that come first give all of it, once.
    """
    kernel = getattr(torch.ops.aten, _BACKWARD)
    totals = list(into)
    for call in calls:
        cut = _asking(states[0], call), _asked(states[1], call), _asked(states[2], call)
        given = _asking(grad, call), *cut, _asking(out, call), _asking(lse, call)
        shares = kernel(*given, 0.0, call.piece.causal, scale=scaling)  # [n, H, R, D], twice [n, H, C, D]
        for number, (share, part) in enumerate(zip(shares, (_asking, _asked, _asked), strict=True)):
            if totals[number] is None and share.shape[0] * share.shape[2] == states[number].shape[2]:
                totals[number] = _one_row(share)
                continue
            if totals[number] is None:
                make = torch.empty_like if whole[number] else torch.zeros_like
                totals[number] = make(states[number])
            view = part(totals[number], call)
            if whole[number] and call.piece.first:
                view.copy_(share)
            else:
                view.add_(share)
    return totals


def _asking(states: torch.Tensor, call: Alike, top: int = 0) -> torch.Tensor:
    """The rows of a call's n pieces, of [1, H, T, ...] that begin with row `top`: a view [n, H, R, ...]."""
    return _side_by_side(states, call.piece.top - top, call.piece.bottom - top, call.count, call.down)


def _asked(states: torch.Tensor, call: Alike) -> torch.Tensor:
    """The keys or values of a call's n pieces, of [1, H, T, D]: a view [n, H, C, D]."""
    return _side_by_side(states, call.piece.left, call.piece.right, call.count, call.across)


def _side_by_side(states: torch.Tensor, begin: int, end: int, count: int, step: int) -> torch.Tensor:
    if count == 1:
        return states[:, :, begin:end]
    _, along_heads, along, *rest = states.stride()
    size = count, states.shape[1], end - begin, *states.shape[3:]
    offset = states.storage_offset() + begin * along
    return states.as_strided(size, (step * along, along_heads, along, *rest), offset)
