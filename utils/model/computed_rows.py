"""Which rows go through which parts of the decoder's layers; the others are not computed.

Two things leave rows out. What the last layer makes of a token is read by the head alone, at supervised tokens or at
the last token of a prompt: only these rows go through its output projection and MLP. And the configuration's
`image_layers` says what image tokens go through in every layer:

- "full": attention, each to itself, and the MLP, as text does;
- "no_mlp": attention, whose result for an image token is its own value through the output projection; no MLP;
- "none": neither. A layer takes an image token's key and value from the projected features as they are.

The layers are transformers' own: hooks around their parts pick the rows before and put them back after, with zeros
for the others, so that a row's residual stays what it was. Keys and values are computed of all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedConfig

from .configuration_visual_chat import IMPLEMENTATIONS

ROWS = "computed_rows"
"""The decoder's argument: a `ComputedRows`; without it all rows are computed."""

_HOOKS = "_computed_rows_hooks"
_ATTENTION, _OUTPUT, _MLP = (
    ("self_attn", "attention"),
    ("o_proj", "dense"),
    ("mlp", "feed_forward", "block_sparse_moe"),
)
"""What decoders call these parts of a layer."""


@dataclass(frozen=True, eq=False)
class Picked:
    """Rows [n] of the B * Q that a part computes, None for all; and which of these results count (bool [n], or [B, Q]
    of all), None for all. The others become zeros.
    """

    rows: torch.Tensor | None
    counts: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class ComputedRows:
    """The rows of one forward over [B, Q] tokens.

    wanted: rows [n] that are read after the last layer, None for all. image_layers: as in the configuration.
    is_text: bool [B, Q], False for image tokens; None where there are none. text: the rows [T] of text that are to be
    computed, or None where tensors are not asked for places, as in exported graphs: then results are masked instead.
    """

    wanted: torch.Tensor | None = None
    image_layers: str = "full"
    is_text: torch.Tensor | None = None
    text: torch.Tensor | None = None

    def of(self, part: str, is_last: bool) -> Picked | None:
        """Those of a part ("query", "output" or "mlp") of a layer; None where it computes all rows."""
        wanted = self.wanted if is_last else None
        if self.is_text is None or self.image_layers == "full":
            return None if wanted is None or part == "query" else Picked(wanted)
        keeps_images = part == "output" and self.image_layers == "no_mlp"
        if wanted is not None:
            counts = None if keeps_images else self.is_text.flatten().to(wanted.device)[wanted]
            return Picked(wanted, counts)
        if keeps_images:
            return None
        if self.text is None:
            return None if part == "query" else Picked(None, self.is_text)
        if not self.text.numel():  # not every layer takes no rows at all
            return Picked(self.text.new_zeros(1), self.is_text.new_zeros(1))
        return Picked(self.text)


def text_rows(is_text: torch.Tensor, image_tokens: int) -> torch.Tensor:
    """The rows [T] of bool [B, Q] that are text; no device is waited for."""
    flat = is_text.flatten()
    return flat.nonzero_static(size=flat.numel() - image_tokens)[:, 0]


def rows_to_compute(
    decoder: nn.Module,
    image_layers: str,
    arguments: Mapping[str, Any],
    kinds: torch.Tensor,
    embedded: torch.Tensor,
    features: torch.Tensor | None,
    wanted: torch.Tensor | None,
) -> ComputedRows | None:
    """Which rows go through the decoder's layers in one forward; None for all through everything.

    arguments: the decoder's others. kinds: [B, K], 0 text and 1 image. embedded: [B, Q, D]. features: of the images
    among the Q [N, S, D], or None. wanted: rows [n] that are read after the last layer, None for all.
    """
    image_layers = "full" if features is None else image_layers
    if wanted is not None and not _may_leave_out(decoder.config, arguments):
        wanted = None
    if wanted is None and image_layers == "full":
        return None
    if not picks_rows(decoder):
        if image_layers == "full":
            return None
        raise ValueError(
            f"a decoder of type {decoder.config.model_type} has no parts that image tokens can be kept out of, as"
            f" image_layers {image_layers} asks; pass image_layers full"
        )
    if features is None or image_layers == "full":
        return ComputedRows(wanted)
    is_text = kinds[:, -embedded.shape[1] :].to(embedded.device) != 1
    layout, text = arguments.get("mmca_layout"), None
    if layout is not None:
        text = layout.rows
    elif not torch.compiler.is_compiling():
        text = text_rows(is_text, features.shape[:2].numel())
    return ComputedRows(wanted, image_layers, is_text, text)


def _may_leave_out(config: PreTrainedConfig, arguments: Mapping[str, Any]) -> bool:
    """Whether the last layer may leave out rows: nobody asked for all states, and attention takes arguments."""
    for name in ("output_hidden_states", "output_attentions"):
        asked = arguments.get(name)
        if getattr(config, name, False) if asked is None else asked:
            return False
    return config._attn_implementation in IMPLEMENTATIONS.values()


def last_rows(inputs: torch.Tensor, count: int) -> torch.Tensor | None:
    """The last `count` tokens of each row of [B, Q, ...], counted through the batch; None where that is all."""
    batch, queries = inputs.shape[:2]
    if count >= queries:
        return None
    places = torch.arange(batch * queries, device=inputs.device).view(batch, queries)
    return places[:, queries - count :].flatten()


def picks_rows(decoder: nn.Module) -> bool:
    """Whether this decoder's layers can be made to pick rows; they are, whenever that is asked: their parts may have
    been replaced, as adapters and quantisation do.
    """
    layers = getattr(decoder, "layers", None)
    if layers is None or not len(layers):
        return False
    found = [parts for layer in layers if (parts := parts_of(layer)) is not None]
    if len(found) < len(layers):
        return False
    last = len(found) - 1
    for number, (layer, parts) in enumerate(zip(layers, found, strict=True)):
        hooks = getattr(layer, _HOOKS, None)
        if hooks is None:
            hooks = _Hooks(number == last)
            setattr(layer, _HOOKS, hooks)
        hooks.stand_on(parts)
    return True


@dataclass(frozen=True, eq=False)
class Parts:
    """Of a layer."""

    attention: nn.Module
    query: nn.Module | None  # one matrix for queries, keys and values has no part of its own
    output: nn.Module
    mlp: nn.Module


def parts_of(layer: nn.Module) -> Parts | None:
    """The parts around which rows are picked; None for a layer that does not have them."""
    attention = _first(layer, _ATTENTION)
    output, mlp = _first(attention, _OUTPUT), _first(layer, _MLP)
    if attention is None or output is None or mlp is None:
        return None
    return Parts(attention, _first(attention, ("q_proj",)), output, mlp)


def _first(module: nn.Module | None, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((each for each in found if isinstance(each, nn.Module)), None)


class _Pick(torch.autograd.Function):
    """Rows [n] of [R, D], each at most once: torch's own gradient adds up one by one, for rows might come twice.

    counts: bool [n], False for rows that are taken for zeros, or None. Neither this nor `_Put` saves a tensor in
    autograd's way: gradient checkpointing stops recomputing a layer behind the last one saved, and processes of which
    only some pick rows have to stop at the same place, for under ZeRO-3 they gather weights together.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, states: torch.Tensor, rows: torch.Tensor, counts: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.places = rows, counts, states.shape[0]
        picked = states.index_select(0, rows)
        return picked if counts is None else picked * counts[:, None].to(picked)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Put.apply(grad, *ctx.places), None, None


class _Put(torch.autograd.Function):
    """[n, D] as those rows of [R, D], zeros elsewhere."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, picked: torch.Tensor, rows: torch.Tensor, counts: torch.Tensor | None, count: int
    ) -> torch.Tensor:
        ctx.places = rows, counts
        if counts is not None:
            picked = picked * counts[:, None].to(picked)
        return picked.new_zeros(count, picked.shape[-1]).index_copy_(0, rows, picked)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _Pick.apply(grad, *ctx.places), None, None, None


class _Hooks:
    """The hooks of one layer. The rows come as its attention's argument: not as the layer's own, because gradient
    checkpointing recomputes a layer without the layer's hooks. Threads may share a model, so each has its own.

    A part that was replaced keeps its hooks, perhaps within the new one; they do nothing any more.
    """

    def __init__(self, is_last: bool) -> None:
        self._is_last = is_last
        self._parts: Parts | None = None
        self._rows: dict[int, ComputedRows] = {}
        self._shapes: dict[int, torch.Size] = {}

    def stand_on(self, parts: Parts) -> None:
        """Hook what is a part of the layer now."""
        known, self._parts = self._parts, parts
        if known is None or known.attention is not parts.attention:
            parts.attention.register_forward_pre_hook(self.enter, with_kwargs=True)
        for name in ("query", "output", "mlp"):
            part = getattr(parts, name)
            if part is not None and (known is None or getattr(known, name) is not part):
                part.register_forward_pre_hook(self.pick)
                part.register_forward_hook(self.put)

    def enter(self, attention: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._parts is None or attention is not self._parts.attention:
            return
        rows = kwargs.get(ROWS)
        if rows is None:
            self._rows.pop(get_ident(), None)
        else:
            self._rows[get_ident()] = rows

    def pick(self, part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        picked = self._picked(part)
        if picked is None or picked.rows is None:
            return None
        states = args[0]  # [B, Q, D]
        self._shapes[get_ident()] = states.shape[:-1]
        flat = states.flatten(0, -2)
        return _Pick.apply(flat, picked.rows.to(states.device), None)[None], *args[1:]  # [1, n, D]

    def put(self, part: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
        picked = self._picked(part)
        if self._parts is not None and part is self._parts.mlp:
            self._rows.pop(get_ident(), None)  # the layer's last part
        if picked is None:
            return None
        if isinstance(out, tuple):  # of experts, with what chose them
            return self._whole(picked, out[0]), *out[1:]
        return self._whole(picked, out)

    def _whole(self, picked: Picked, out: torch.Tensor) -> torch.Tensor:
        """[..., D] with zeros for the rows that do not count."""
        flat = out.flatten(0, -2)
        counts = None if picked.counts is None else picked.counts.flatten().to(flat.device)
        if picked.rows is None:
            return out if counts is None else (flat * counts[:, None].to(flat)).view_as(out)
        shape = self._shapes[get_ident()]
        return _Put.apply(flat, picked.rows.to(flat.device), counts, shape.numel()).view(*shape, -1)

    def _picked(self, part: nn.Module) -> Picked | None:
        rows = self._rows.get(get_ident())
        if rows is None:
            return None
        for name in ("query", "output", "mlp"):
            if part is getattr(self._parts, name):
                return rows.of(name, self._is_last)
        return None
