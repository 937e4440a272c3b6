"""Tests on a small copy of a decoder whether it computes multi-modal causal attention.

transformers lets any name of attention be asked for, and not every decoder does what it is asked: some mix tokens in
layers that are not attention (recurrent, convolutional, linear), some have an attention of their own, some hand it
more than masks (sinks, capped scores). So a copy with random weights, a few layers and narrow ones, reads two packed
conversations with images, as many times as there are tokens, one of them changed each time: what moves must be what
the definition says. Where image tokens skip parts of the layers, their rows must be what they were in front of them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.integrations import deepspeed as integration

from .computed_rows import ROWS, ComputedRows, picks_rows, text_rows

_LAYERS, _HEADS, _VOCABULARY = 6, 4, 64
_KINDS = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0])
_CONVERSATIONS = torch.tensor([0] * 9 + [1] * 4)
_NO_ATTENTION = ("linear", "mamba", "conv", "recurrent", "ssm")
"""What the kinds of layers are called that mix tokens otherwise."""

_MOVED = 1e-4
"""A change of a row, relative to the largest number, that is more than rounding."""


@contextmanager
def outside_zero3() -> Iterator[None]:
    """Build a skeleton as if nothing were partitioned: it has no weights that processes could share out."""
    reference = integration._hf_deepspeed_config_weak_ref
    alive = reference() if reference is not None else None
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if alive is not None:
            integration.set_hf_deepspeed_config(alive)


def check_computes_mmca(
    config: PreTrainedConfig, attention: str = "mmca", image_layers: str = "full"
) -> None:
    """Raise `ValueError`, in one line that names the cause, for a decoder that does not compute "mmca" or "cross", or
    whose image tokens cannot be kept out of what `image_layers` says.

    config: the decoder's. No weights are read; it takes a second or less for a decoder of any size.
    """
    config = config.get_text_config(decoder=True)
    others = sorted({kind for kind in _layer_kinds(config) if any(word in kind for word in _NO_ATTENTION)})
    cause = (
        f"its layers of kind {', '.join(others)} mix tokens otherwise than by attention" if others else None
    )
    if cause is None:
        cause = _why_not(config, attention, "full")
    if cause is not None:
        raise ValueError(
            f"a decoder of type {config.model_type} cannot be used with attention {attention}: {cause}; choose another"
            " decoder, or attention causal"
        )
    if image_layers != "full" and (cause := _why_not(config, attention, image_layers)) is not None:
        raise ValueError(
            f"a decoder of type {config.model_type} cannot be used with image_layers {image_layers}: {cause}; choose"
            " another decoder, or image_layers full"
        )


def _why_not(config: PreTrainedConfig, attention: str, image_layers: str) -> str | None:
    try:
        small = json.dumps(_small(config), sort_keys=True)
        kind: Any = type(config)
        return _what_is_wrong(kind, small, attention, image_layers)
    except Exception as error:  # whatever a decoder does with sizes and arguments that it does not know
        said = (str(error).strip().splitlines() or [""])[0]
        if isinstance(error, ValueError):
            return said
        return (
            "it does not compute attention through transformers' AttentionInterface as others do"
            f" ({type(error).__name__}: {said})"
        )


def _layer_kinds(config: PreTrainedConfig) -> list[str]:
    for name in ("layer_types", "layers_block_type", "block_types"):
        if kinds := getattr(config, name, None):
            return [str(kind) for kind in kinds]
    return []


@lru_cache(maxsize=32)
@torch.no_grad()
def _what_is_wrong(
    kind: type[PreTrainedConfig], fields: str, attention: str, image_layers: str
) -> str | None:
    """The cause, or None, for a decoder of so small a configuration."""
    with outside_zero3(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        small = kind.from_dict(json.loads(fields))
        model = AutoModel.from_config(small, attn_implementation=attention, dtype=torch.float32).eval()
        for parameter in model.parameters():  # also those that start at 0, which would hide what they do
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = len(_KINDS)
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(1, tokens, model.get_input_embeddings().weight.shape[1], generator=generator)
    changed = embedded.repeat(tokens + 1, 1, 1)  # row 0 as it is, row i + 1 with token i changed
    places = torch.arange(tokens)
    changed[places + 1, places] = torch.randn(embedded[0].shape, generator=generator)
    position_ids = torch.cat([torch.arange(int(count)) for count in _CONVERSATIONS.bincount()])
    given: dict[str, Any] = {
        "inputs_embeds": changed,
        "position_ids": position_ids.expand(tokens + 1, -1),
        "mm_token_type_ids": _KINDS.expand(tokens + 1, -1),
        "use_cache": False,
    }
    if image_layers != "full":
        if not picks_rows(model):
            return "its layers have no parts that image tokens can be kept out of"
        given[ROWS] = _rows(given["mm_token_type_ids"], image_layers)
        if cause := _why_not_kept_out(model, given, image_layers):
            return cause
    hidden = model(**given)[0]  # [S + 1, S, D]
    if not hidden.isfinite().all():
        return "its results are not finite"
    moved = (hidden[1:] - hidden[:1]).abs().amax(dim=2) > _MOVED * hidden[0].abs().max()  # [changed, read]
    source, target = places[:, None], places
    same = _CONVERSATIONS[:, None] == _CONVERSATIONS
    is_image = _KINDS == 1
    if (moved & ~same).any():
        return "packed conversations read each other"
    if (moved & (source > target)).any():
        return "tokens read what comes after them"
    if (moved & is_image & (source != target)).any():
        return "its image tokens read other tokens"
    near = same & (source == target - 1) & ~is_image
    if (near & ~moved).any():
        return "its text tokens do not read what stands before them"
    return None


def _rows(kinds: torch.Tensor, image_layers: str) -> ComputedRows:
    is_text = kinds == 0
    return ComputedRows(None, image_layers, is_text, text_rows(is_text, int((~is_text).sum())))


def _why_not_kept_out(model: nn.Module, given: dict[str, Any], image_layers: str) -> str | None:
    """The cause where zeros from a layer's parts do not leave the rows of image tokens as they were."""
    is_image = given["mm_token_type_ids"] == 1
    changes: list[float] = []

    def compare(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = out[0] if isinstance(out, tuple) else out
        changes.append(float((after - before)[is_image].abs().max() / before.abs().max()))

    hooks = [layer.register_forward_hook(compare, with_kwargs=True) for layer in model.layers]
    for choice in {"none", image_layers}:
        changes.clear()
        model(**given | {ROWS: _rows(given["mm_token_type_ids"], choice)})
        if choice == "none" and max(changes) > _MOVED:
            return "its layers change image tokens by more than attention and MLP, as by a bias behind them"
        if choice == "no_mlp" and min(changes) <= _MOVED:
            return "its image tokens do not go through attention"
    for hook in hooks:
        hook.remove()
    return None


def _small(config: PreTrainedConfig) -> dict[str, Any]:
    """The configuration of few and narrow layers; heads keep their width, on which rotary embeddings depend."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    sizes = {
        "num_hidden_layers": min(layers, _LAYERS),
        "num_attention_heads": _HEADS,
        "num_key_value_heads": max(_HEADS * shared // heads, 1),
        "head_dim": width,
        "hidden_size": _HEADS * width,
        "vocab_size": _VOCABULARY,
    }
    sizes |= dict.fromkeys(
        ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 32
    )
    sizes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    fields = config.to_dict()
    for name in ("quantization_config", "dtype", "transformers_version"):
        fields.pop(name, None)
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == layers:
            fields[name] = value[: sizes["num_hidden_layers"]]
    for name, value in sizes.items():
        name = config.attribute_map.get(name, name)
        if fields.get(name) is not None or (name in ("head_dim", "num_key_value_heads") and name in fields):
            fields[name] = value
    return fields
