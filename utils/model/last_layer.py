"""In a decoder's last layer, only rows that somebody reads go through output projection and MLP.

Nobody attends to what the last layer makes of a token; it is read by the head alone, at supervised tokens or at
the last token of a prompt. Under multi-modal causal attention that is never an image token, and images are most
of a sequence. The layer is transformers' own: hooks around two of its parts pick the rows before and put them
back after. What the other rows hold then is no result, so whoever wants all of them asks for no rows.
"""

from threading import get_ident
from typing import Any

import torch
from torch import nn

ROWS = "wanted_rows"
"""The decoder's argument: which rows [n] of the B * Q are wanted; None for all."""

_MARK = "_picks_wanted_rows"


def only_rows(decoder: nn.Module, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The decoder's arguments where these rows [n] of the B * Q alone are wanted, at least one; none where its last
    layer computes all."""
    return {ROWS: rows} if picks_rows(decoder) else {}


def picks_rows(decoder: nn.Module) -> bool:
    """Whether this decoder's last layer can be made to pick rows; it is, the first time it is asked."""
    layers = getattr(decoder, "layers", None)
    if layers is None or not len(layers):
        return False
    layer = layers[-1]
    if hasattr(layer, _MARK):
        return True
    parts = getattr(getattr(layer, "self_attn", None), "o_proj", None), getattr(layer, "mlp", None)
    if not all(isinstance(part, nn.Module) for part in parts):
        return False
    picker = _Picker()
    layer.self_attn.register_forward_pre_hook(picker.enter, with_kwargs=True)
    for part, put in zip(parts, (picker.put, picker.put_last), strict=True):
        part.register_forward_pre_hook(picker.pick)
        part.register_forward_hook(put)
    setattr(layer, _MARK, True)
    return True


class _Picker:
    """The hooks of one layer. The rows come as its attention's argument: not as the layer's own, because gradient
    checkpointing recomputes a layer without the layer's hooks. Threads may share a model, so each has its own.
    """

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}
        self._shapes: dict[int, torch.Size] = {}

    def enter(self, _attention: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = kwargs.get(ROWS)
        if rows is None:
            self._rows.pop(get_ident(), None)
        else:
            self._rows[get_ident()] = rows

    def pick(self, _part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        rows = self._rows.get(get_ident())
        if rows is None:
            return None
        states = args[0]  # [B, Q, D]
        self._shapes[get_ident()] = states.shape[:-1]
        return states.flatten(0, -2)[rows.to(states.device)][None], *args[1:]  # [1, n, D]

    def put(self, _part: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
        rows = self._rows.get(get_ident())
        if rows is None:
            return None
        if not isinstance(out, torch.Tensor):
            raise TypeError(f"the last layer's part gives {type(out).__name__}, not a tensor")
        shape = self._shapes[get_ident()]
        whole = out.new_zeros(shape.numel(), out.shape[-1])
        return whole.index_copy(0, rows.to(out.device), out[0]).view(*shape, -1)

    def put_last(self, part: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        out = self.put(part, args, out)
        self._rows.pop(get_ident(), None)
        return out
