"""Multi-modal causal attention in rows that are padded and masked: for any mask that a decoder makes.

Image tokens attend only to themselves, so only text tokens have queries here; each softmax reads its own keys only. The
layout names the positions to move together. Rows are computed side by side, which pays where they are short;
where they are long, masks cost more than they save. Sliding windows, static caches, dropout and "cross", which has
one softmax over both kinds, are computed here alone.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.nn import functional as F

T = TypeVar("T", torch.Tensor, "Gather")


@dataclass(frozen=True, eq=False)
class Gather:
    """The positions of each row that matter, at most T of them; rows with fewer are filled up with others.

    places: [B, T] positions in their order. spare: [B, T], True for what only fills up, or None where
    nothing does.
    """

    places: torch.Tensor
    spare: torch.Tensor | None

    def to(self, device: torch.device) -> "Gather":
        return Gather(self.places.to(device), None if self.spare is None else self.spare.to(device))

    @classmethod
    def of(cls, wanted: torch.Tensor) -> "Gather | None":
        """Where `wanted` [B, S] is True; None where it is everywhere, so that nothing needs to move."""
        if wanted.all():
            return None
        counts = wanted.sum(dim=1)
        most = int(counts.max())
        places = (~wanted).int().argsort(dim=1, stable=True)[:, :most]  # wanted ones first
        spare = torch.arange(most, device=wanted.device) >= counts[:, None]
        return cls(places, spare if spare.any() else None)


@dataclass(frozen=True, eq=False)
class SoftmaxTerm:
    """One softmax: the keys it reads and what each of T queries sees of them.

    keys: which of the K keys, or None for all. mask: [B, 1, T, N], or None where it is plainly causal.
    blank: [B, 1, T, 1], True for queries that see nothing here, or None. Their result is exactly zero; their
    mask is all ones, because a softmax needs a key. of_images: whether all its keys are images'.
    """

    keys: Gather | None
    mask: torch.Tensor | None
    blank: torch.Tensor | None
    of_images: bool

    def to(self, device: torch.device) -> "SoftmaxTerm":
        mask, blank = _moved(self.mask, device), _moved(self.blank, device)
        return SoftmaxTerm(_moved(self.keys, device), mask, blank, self.of_images)


@dataclass(frozen=True, eq=False)
class MaskedLayout:
    """Who sees whom in one forward, for Q queries over K keys of B rows.

    queries: the text tokens among the Q, or None where all are. terms: the softmaxes whose results add up
    for them. own_keys: the keys at the queries' own positions, whose values are the result of the other rows;
    None for the last Q.
    """

    queries: Gather | None
    terms: tuple[SoftmaxTerm, ...]
    own_keys: Gather | None

    def to(self, device: torch.device) -> "MaskedLayout":
        """On another device; where a model is spread over several."""
        if all(each.mask is None or each.mask.device == device for each in self.terms):
            return self
        terms = tuple(each.to(device) for each in self.terms)
        return MaskedLayout(_moved(self.queries, device), terms, _moved(self.own_keys, device))


def build_masked_layout(visible: torch.Tensor, kinds: torch.Tensor, joint: bool = False) -> MaskedLayout:
    """Split a decoder's own visibility by the kind of key; joint: one softmax over both kinds.

    visible: bool [B, 1, Q, K], causal, without padding and without other conversations.
    kinds: [B, K], 0 text and 1 image; shorter than K where a static cache has empty places at its end.
    """
    visible = visible[:, 0]  # [B, Q, K]
    is_image = kinds.to(visible.device) == 1
    missing = visible.shape[2] - kinds.shape[1]
    own_keys = None
    if missing:
        is_image = F.pad(is_image, (0, missing))
        own_keys = _own_keys(visible, covered=kinds.shape[1])
    query_is_image = (
        is_image[:, -visible.shape[1] :] if own_keys is None else is_image.gather(1, own_keys.places)
    )
    asks = visible.any(dim=2) & ~query_is_image  # [B, Q], text that is not padding
    seen = visible.any(dim=1)  # [B, K]
    queries = Gather.of(asks)
    if queries is not None:
        rows = queries.places[:, :, None].expand(-1, -1, visible.shape[2])
        visible = visible.gather(1, rows)  # [B, T, K]
    by_softmax = [(seen, False)] if joint else [(seen & ~is_image, False), (seen & is_image, True)]
    terms = (
        _term(visible, wanted, queries, of_images)
        for wanted, of_images in by_softmax
        if asks.any() and wanted.any()
    )
    return MaskedLayout(queries, tuple(terms), own_keys)


def _own_keys(visible: torch.Tensor, covered: int) -> Gather:
    """The key at each query's position in a static cache: the last it sees, of [B, Q, K]."""
    keys = visible.shape[2]
    if visible[..., covered:].any():
        raise ValueError(
            f"mm_token_type_ids cover {covered} keys, but attention reads {keys}; pass the kind of every"
            " key, those in the cache too (the whole [B, K] tensor at every step of generation)"
        )
    return Gather((visible * torch.arange(keys, device=visible.device)).amax(dim=2), spare=None)


def _term(
    visible: torch.Tensor, wanted: torch.Tensor, queries: Gather | None, of_images: bool
) -> SoftmaxTerm:
    """A softmax over the keys `wanted` [B, K], for queries that see `visible` [B, T, K]."""
    rows = visible.shape[1]
    mask = visible & wanted[:, None, :]
    keys = Gather.of(wanted) if rows > 1 else None  # for a single query, moving keys costs more than it saves
    if keys is not None:
        mask = mask.gather(2, keys.places[:, None, :].expand(-1, rows, -1))  # [B, T, N]
        if keys.spare is not None:
            mask = mask & ~keys.spare[:, None, :]
    if _is_causal(mask, queries):
        return SoftmaxTerm(keys, None, None, of_images)
    blank = ~mask.any(dim=2, keepdim=True)
    return SoftmaxTerm(keys, (mask | blank)[:, None], blank[:, None] if blank.any() else None, of_images)


def _is_causal(mask: torch.Tensor, queries: Gather | None) -> bool:
    """Whether each query sees the keys up to its own number: then SDPA needs no mask."""
    if mask.shape[1] != mask.shape[2] or mask.shape[1] == 1:
        return False
    same = mask == torch.ones_like(mask[0]).tril()
    if queries is not None and queries.spare is not None:
        same = same | queries.spare[:, :, None]
    return bool(same.all())


def attend_masked(
    layout: MaskedLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    gate: torch.Tensor | None = None,
) -> torch.Tensor:
    """query [B, H, Q, D], key [B, Hkv, K, D], value [B, Hkv, K, Dv] -> [B, Q, H, Dv]; gate: [H] on the images' term."""
    batch, heads, rows, _ = query.shape
    groups = heads // key.shape[1]
    asking = _pick(query, layout.queries)  # [B, H, T, D]
    out = None
    for each in layout.terms:
        read_keys, read_values = (_repeat(_pick(tensor, each.keys), groups) for tensor in (key, value))
        term = F.scaled_dot_product_attention(
            asking,
            read_keys,
            read_values,
            attn_mask=each.mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=each.mask is None,
        )
        if each.blank is not None:
            term = term.masked_fill(each.blank, 0.0)
        if gate is not None and each.of_images:
            term = term * gate.to(term.dtype)[:, None, None]
        out = term if out is None else out + term
    if layout.queries is None:
        assert out is not None, "text reads at least itself"
        return out.transpose(1, 2).contiguous()
    own = value[:, :, -rows:] if layout.own_keys is None else _pick(value, layout.own_keys)
    own = _repeat(own, groups).transpose(1, 2)  # [B, Q, H, D]
    if out is None:
        return own.contiguous()
    places = layout.queries.places + rows * torch.arange(batch, device=query.device)[:, None]  # among B * Q
    out = out.transpose(1, 2).reshape(-1, heads, value.shape[3])  # [B * T, H, Dv]
    places = places.flatten()
    if layout.queries.spare is not None:
        kept = ~layout.queries.spare.flatten()
        out, places = out[kept], places[kept]
    whole = own.reshape(-1, heads, value.shape[3]).index_copy(0, places, out)
    return whole.view(batch, rows, heads, -1)


def _pick(states: torch.Tensor, picked: Gather | None) -> torch.Tensor:
    """The picked positions of [B, H, S, D]: [B, H, T, D]. Moves whole rows, which is what memory likes."""
    if picked is None:
        return states
    batch, heads, length, width = states.shape
    flat = picked.places + length * torch.arange(batch, device=states.device)[:, None]
    rows = states.transpose(1, 2).reshape(batch * length, heads * width).index_select(0, flat.flatten())
    return rows.view(batch, -1, heads, width).transpose(1, 2)


def _repeat(states: torch.Tensor, groups: int) -> torch.Tensor:
    """Key-value heads for every query head; SDPA's own grouping is slow under a mask."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _moved(part: T | None, device: torch.device) -> T | None:
    """A tensor, or a `Gather`, on a device."""
    return None if part is None else part.to(device)
