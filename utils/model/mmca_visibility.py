"""What a decoder says about who sees whom, kept in place of a mask of queries x keys.

transformers makes a mask once per forward and hands it to every layer. For plain visibility (causal, with
padding or with packed conversations) its rule is kept instead of its table, so that nothing grows with the
square of the length; the first layer that asks makes the layout, and the others find it here.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .mmca_kernels import States, prepare_kernel
from .mmca_layout import Layout, build_layout
from .mmca_masked import MaskedLayout, build_masked_layout

_PACKED = "and_masks.<locals>.and_mask"  # transformers' rule for packed conversations, made of two


class Visibility:
    """The rule of one forward over Q queries and K keys of B rows; lives as long as that forward."""

    def __init__(self, **rule: Any) -> None:
        """rule: the arguments of transformers' mask interface."""
        self._rule = rule
        self._layouts: dict[bool, Layout | MaskedLayout] = {}

    def layout(self, kinds: torch.Tensor, keys: int, joint: bool = False) -> Layout | MaskedLayout:
        """Who sees whom, for the kinds of keys [B, K]; joint: one softmax over both kinds."""
        if joint not in self._layouts:
            rule = self._rule
            if not joint and kinds.shape[1] == keys == rule["kv_length"]:
                kinds = kinds.to(rule["device"]).expand(rule["batch_size"], -1)
                self._layouts[joint] = build_layout(kinds, rule["q_length"], self._valid(), self._begins())
            else:
                self._layouts[joint] = build_masked_layout(self.mask()[..., :keys], kinds[:, -keys:], joint)
        return self._layouts[joint]

    def to(self, device: torch.device, **_kwargs: Any) -> "Visibility":
        """Where a model is spread over devices; layouts are moved by the layer that needs them."""
        return self

    def mask(self) -> torch.Tensor:
        """The table: bool [B, 1, Q, K]."""
        return sdpa_mask(**self._rule, allow_is_causal_skip=False)

    def is_plain(self) -> bool:
        """Whether queries see all that is before them in their conversation; nobody else's rule is guessed."""
        rule = self._rule
        offset = rule.get("q_offset", 0)
        function = rule.get("mask_function", causal_mask_function)
        packed = getattr(function, "__qualname__", "") == _PACKED and not rule.get("use_vmap", False)
        return (
            rule.get("local_size") is None
            and (function is causal_mask_function or packed)
            and isinstance(offset, int)
            and not rule.get("kv_offset", 0)
            and offset + rule["q_length"] == rule["kv_length"]
        )

    def _valid(self) -> torch.Tensor | None:
        """Which keys are no padding, [B, K]; None where all are."""
        padding = self._rule.get("attention_mask")
        if padding is None or (padding.device.type == "cpu" and bool(padding.all())):
            return None
        return padding[:, : self._rule["kv_length"]].bool()

    def _begins(self) -> torch.Tensor | None:
        """Where a conversation begins inside a row, [B, K]: its first token does not see the one before."""
        function: Callable = self._rule.get("mask_function", causal_mask_function)
        if function is causal_mask_function:
            return None
        rows = torch.arange(self._rule["batch_size"], device=self._rule["device"])[:, None]
        places = torch.arange(1, self._rule["kv_length"], device=self._rule["device"])[None]
        goes_on = function(rows, 0, places, places - 1)  # [B, K - 1]
        return torch.nn.functional.pad(~goes_on, (1, 0))


def visibility(*, allow_is_causal_skip: bool = True, **rule: Any) -> Visibility | torch.Tensor:
    """transformers' mask interface: the rule where it is plain, else the table [B, 1, Q, K].

    The table at once: a static cache moves the offsets in it as soon as the first layer has been computed.
    """
    rule.setdefault("device", "cpu")
    known = Visibility(**rule)
    if not known.is_plain() or torch.compiler.is_compiling():
        return known.mask()
    config, device, dtype = rule.get("config"), torch.device(rule["device"]), rule.get("dtype")
    if dtype is not None and getattr(config, "_attn_implementation", "") == "mmca":
        # Here, for the layers that come may be checkpointed.
        prepare_kernel(States.of_config(config, device, dtype), device)
    return known
