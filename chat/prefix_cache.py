"""Keys and values of the last dialogue, so that the next round computes only what is new in it."""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from transformers import DynamicCache

from utils.conversation import Image


@dataclass(frozen=True)
class Prefix:
    """What can be reused: the cache, and how many tokens and images of the new dialogue it already holds."""

    cache: DynamicCache
    tokens: int
    images: int


class PrefixCache:
    """Remembers one dialogue's cache, and hands out the part of it that a new dialogue starts with as well.

    Tokens are the same where their ids are; images where they are the same object. The cache leaves this
    place while it is in use: a computation that fails half way costs the reuse, never a wrong answer.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._cache: DynamicCache | None = None
        self._ids = np.empty(0, dtype=np.int64)
        self._images: tuple[Image, ...] = ()

    @torch.inference_mode()
    def take(self, ids: np.ndarray, is_image: np.ndarray, images: tuple[Image, ...]) -> Prefix:
        """The longest start of a dialogue that is cached.

        `is_image` [S] marks the tokens of the `images` among the `ids` [S] of the new dialogue. At least
        one token is left to compute: the answer's first token comes from the last one's logits.
        """
        cache, known_ids, known_images = self._cache, self._ids, self._images
        self.clear()
        tokens = _common_length(known_ids, ids[:-1])
        pairs = zip(known_images, images, strict=False)
        whole = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
        if images:
            places = np.flatnonzero(is_image)  # [n * tokens of an image]
            length = len(places) // len(images)
            whole = min(whole, int((places < tokens).sum()) // length)
            if whole < len(images):  # the first image that is another, or cached in part, ends the prefix
                tokens = min(tokens, int(places[whole * length]))
        if cache is None or tokens == 0 or not _crop(cache, tokens):
            return Prefix(DynamicCache(), 0, 0)
        return Prefix(cache, tokens, whole)

    def put(self, cache: DynamicCache, ids: np.ndarray, images: tuple[Image, ...]) -> None:
        """Remember the `cache` of a dialogue of these `ids`, of which the last may not be in it."""
        lengths = {layer.get_seq_length() for layer in cache.layers}
        if len(lengths) != 1:  # empty, or interrupted between two layers
            self.clear()
            return
        self._cache, self._images = cache, images
        self._ids = ids[: lengths.pop()]


def _common_length(left: np.ndarray, right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size


def _crop(cache: DynamicCache, tokens: int) -> bool:
    """Keep the first `tokens` of the cache; False where a layer forgets old ones (sliding windows)."""
    if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        return False
    if surplus := cache.get_seq_length() - tokens:
        cache.crop(-surplus)
    return True
