"""An image's keys and values under multi-modal causal attention: computed once, for every place it may stand at.

An image token attends to itself only, so its keys and values in every layer depend on the image and, through
the rotary embedding of its keys alone, on its position. Here they are computed at position 0, where nothing is
rotated, and rotated to their positions by the decoder's own functions: the same arithmetic on the same numbers
as in a forward over the whole dialogue.

What is left to compute of a dialogue is text: each text token reads the text before it, in a cache of its own, and the
images before it, by `CachedImageKV`. The order of keys need not be the order of positions; who sees what is said by
counts: a text token sees as many image tokens, of its row's in their order, as stand before it. The decoder takes it as
the argument `image_kv`, which reaches every layer's attention (`utils.model.mmca`):

    decoder(inputs_embeds=text, position_ids=places, cache=cache, attention_mask=NO_MASK, image_kv=cached)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from chat.generation.reading import growing_cache
from utils.model.computed_rows import ROWS, ComputedRows, picks_rows
from utils.model.generation_visual_chat import CACHE
from utils.model.mmca_layout import NO_MASK


@dataclass(frozen=True, eq=False)
class SharedImages:
    """The images that some rows of a batch have: one image token after the other, I of them.

    keys, values: a tensor [1, Hkv, I, D] for each layer. rows: [n] the rows of the batch, or None for all. seen: [n, Q]
    how many image tokens each new token sees, or None where each sees all I.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    rows: torch.Tensor | None = None
    seen: torch.Tensor | None = None


class CachedImageKV:
    """The images of B rows, and what Q new text tokens see of them and of T text tokens (cached and new).

    images: each row stands in one of these at most. text_mask: bool [B or 1, 1, Q, T] (see `causal_mask`), or None
    where each sees all T, as a single new token does.
    """

    def __init__(self, images: Sequence[SharedImages] = (), text_mask: torch.Tensor | None = None) -> None:
        self._images = [(each, *_masks(each)) for each in images]
        self._text_mask = text_mask

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One layer's attention: query [B, H, Q, D], text keys and values [B, Hkv, T, D] -> [B, Q, H, D].

        gate: [H] on what is read of images.
        """
        out = _read(query, key, value, self._text_mask, scaling)
        for images, mask, blank in self._images:
            rows = None if images.rows is None else images.rows.to(query.device)
            asking = query if rows is None else query[rows]
            term = _read(asking, images.keys[layer], images.values[layer], mask, scaling)
            if blank is not None:
                term = term.masked_fill(blank.to(term.device), 0.0)
            if gate is not None:
                term = term * gate.to(term.dtype)[:, None, None]
            out = out + term if rows is None else out.index_add(0, rows, term)
        return out.transpose(1, 2).contiguous()


def _masks(images: SharedImages) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which image tokens each new token sees, bool [n, 1, Q, I], and which sees none, bool [n, 1, Q, 1]."""
    if images.seen is None:
        return None, None
    places = torch.arange(images.keys[0].shape[2], device=images.seen.device)
    blank = (images.seen == 0)[:, None, :, None]
    mask = places < images.seen[:, None, :, None]
    return mask | blank, blank  # a softmax needs a key; its result is taken out


def causal_mask(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    """The last `rows` of `keys` tokens, each seeing those up to itself: bool [1, 1, rows, keys]."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)[None, None]


class ImageOnlyAttention:
    """In place of `CachedImageKV` where nothing but image tokens is read: each attends to itself."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object
    ) -> torch.Tensor:
        """The values are the result: value [B, Hkv, S, D] -> [B, S, H, D]."""
        groups = query.shape[1] // value.shape[1]
        return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous()


def _read(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """One softmax: query [B, H, Q, D], keys and values [G, Hkv, K, D], mask [B or 1, 1, Q, K] -> [B, H, Q, D].

    Query heads, and rows of the batch, that share keys become rows of one head, so that keys and values are read
    once and never repeated.
    """
    batch, heads, rows, width = query.shape
    sets, shared = keys.shape[:2]
    together, groups = batch // sets, heads // shared
    query = query.reshape(sets, together, shared, groups * rows, width).transpose(1, 2)
    if mask is not None:
        mask = mask.to(query.device)
        if together > 1:
            mask = mask.expand(batch, -1, -1, -1)
        mask = mask.repeat(1, 1, groups, 1)
        if together > 1:
            mask = mask.view(sets, 1, together * groups * rows, -1)
    asking = query.reshape(sets, shared, together * groups * rows, width)
    out = F.scaled_dot_product_attention(asking, keys, values, attn_mask=mask, scale=scaling)
    out = out.view(sets, shared, together, groups * rows, width).transpose(1, 2)
    return out.reshape(batch, heads, rows, width)


_EVERYWHERE = sys.maxsize
_PROBED = 4  # tokens


class CannotReuseKV(ValueError):  # noqa: N818 (a finding, not a failure)
    """Why what is computed for an image at one position does not serve at others."""


@dataclass(frozen=True, eq=False)
class ImageKV:
    """Keys, not rotated, and values of one image's S tokens: a tensor [Hkv, S, D] for each layer.

    summary: the mean of its features, in the decoder's width.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    summary: torch.Tensor

    @property
    def nbytes(self) -> int:
        """The memory they take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values, self.summary))

    def to(self, devices: Sequence[torch.device]) -> "ImageKV":
        """On the device of each layer; the same object where they are there already."""
        if all(each.device == device for each, device in zip(self.keys, devices, strict=True)):
            return self
        keys, values = (
            tuple(tensor.to(device) for tensor, device in zip(tensors, devices, strict=True))
            for tensors in (self.keys, self.values)
        )
        return ImageKV(keys, values, self.summary.to(devices[0]))


class ImageKVEncoder:
    """Computes the states of images with a decoder, and rotates their keys to where the images stand.

    Raises `CannotReuseKV` for a decoder whose states cannot be moved: every claim is tried on the decoder itself.
    `reach`: the positions below which states can be moved; beyond them attention windows or changing
    frequencies make them differ. `device`: where positions and features are wanted; `devices`: where each
    layer leaves its keys and values. `image_layers`: what images go through, as in the configuration.
    """

    def __init__(self, decoder: nn.Module, image_layers: str = "full") -> None:
        self._decoder, self._image_layers = decoder, image_layers
        rotary = getattr(decoder, "rotary_emb", None)
        attention = getattr(next(iter(getattr(decoder, "layers", ())), None), "self_attn", None)
        module: ModuleType | None = sys.modules.get(type(attention).__module__)
        apply = getattr(module, "apply_rotary_pos_emb", None)
        if rotary is None or apply is None:
            raise CannotReuseKV(
                f"{type(decoder).__name__} does not place its tokens by rotary embeddings of keys"
            )
        self._rotary, self._apply = rotary, apply
        self.reach = _reach(decoder.config)
        on_device = (each.device for each in decoder.parameters() if each.device.type != "meta")
        self.device = next(on_device, torch.device("cpu"))  # of what goes in; "meta" is offloaded
        self._scaling = float(getattr(self._rotary, "attention_scaling", 1.0))
        self.devices = self._try()

    @torch.inference_mode()
    def compute(self, features: torch.Tensor) -> list[ImageKV]:
        """Features in the decoder's width [N, S, D] -> the states of N images."""
        images, length, _ = features.shape
        layers = self._forward(features.flatten(0, 1), torch.zeros(images * length, dtype=torch.long))
        # Copies: a view would keep the memory of all N images for as long as one of them is kept.
        keys, values = (
            [layer[which][0].unflatten(1, (images, length)) for layer in layers] for which in (0, 1)
        )  # for each layer [Hkv, N, S, D]
        return [
            ImageKV(
                tuple(tensor[:, number].clone() for tensor in keys),
                tuple(tensor[:, number].clone() for tensor in values),
                features[number].mean(dim=0),
            )
            for number in range(images)
        ]

    def rotations(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of token positions [..., I], as `rotate` takes them."""
        like = torch.empty(0, device=places.device, dtype=self._decoder.dtype)
        cos, sin = self._rotary(like, position_ids=places)
        return (cos, sin) if self._scaling == 1 else (cos / self._scaling, sin / self._scaling)

    def rotate(self, keys: torch.Tensor, rotations: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Keys [B, Hkv, I, D] at their positions, as the decoder rotates them."""
        cos, sin = (tensor.to(keys.device) for tensor in rotations)
        return self._apply(keys[:, :0], keys, cos, sin)[1]

    def _forward(
        self, embedded: torch.Tensor, places: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Image tokens [S, D] at positions [S] through the decoder: keys and values of each layer."""
        cache, rows = growing_cache(), {}
        if picks_rows(self._decoder):  # keys and values of image tokens are wanted, and none of their rows
            none = torch.zeros(1, dtype=torch.long, device=embedded.device)
            is_text = torch.zeros(1, len(embedded), dtype=torch.bool, device=embedded.device)
            rows = {ROWS: ComputedRows(none, self._image_layers, is_text, none[:0])}
        self._decoder(
            inputs_embeds=embedded[None],
            attention_mask=NO_MASK.to(embedded.device),
            position_ids=places[None].to(embedded.device),
            use_cache=True,
            image_kv=ImageOnlyAttention(),
            **{CACHE: cache},
            **rows,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def _try(self) -> tuple[torch.device, ...]:
        """Compare states that were moved with states computed at their place; returns each layer's device."""
        width = self._decoder.config.hidden_size
        noise = torch.randn(_PROBED, width, generator=torch.Generator().manual_seed(0))
        embedded = noise.to(self.device, self._decoder.dtype)
        farthest = min(self.reach, getattr(self._decoder.config, "max_position_embeddings", None) or 4096) - 1
        places = torch.linspace(min(1, farthest), farthest, _PROBED).long()
        kept, there = self._forward(embedded, torch.zeros_like(places)), self._forward(embedded, places)
        rotations = self.rotations(places[None].to(self.device))
        for (keys, values), (wanted_keys, wanted_values) in zip(kept, there, strict=True):
            if not (_same(self.rotate(keys, rotations), wanted_keys) and _same(values, wanted_values)):
                raise CannotReuseKV(
                    f"what {type(self._decoder).__name__} computes for an image depends on its position in"
                    " another way than by the rotation of keys"
                )
        return tuple(keys.device for keys, _ in kept)


def _same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal but for rounding."""
    scale = wanted.float().abs().max().clamp(min=1e-6)
    return bool((found.float() - wanted.float()).abs().max() <= 8 * torch.finfo(wanted.dtype).eps * scale)


def _reach(config: PreTrainedConfig) -> int:
    """The number of positions within which neither windows nor rotary frequencies depend on the length."""
    limits = [_EVERYWHERE]
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise CannotReuseKV(f"layers of kind {', '.join(sorted(kinds))} keep more than keys and values")
    window = getattr(config, "sliding_window", None)
    if window and (not kinds or "sliding_attention" in kinds):
        limits.append(window)
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise CannotReuseKV("its layers rotate keys in different ways")
    if "dynamic" in rope.get("rope_type", "default"):
        limits.append(config.max_position_embeddings)
    if rope.get("rope_type") == "longrope":
        known = rope.get("original_max_position_embeddings")
        limits.append(getattr(config, "original_max_position_embeddings", 1) if known is None else known)
    return min(limits)
