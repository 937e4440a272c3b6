"""What was read of the last dialogue, so that the next round reads only what is new in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch

from chat.opened_images import OpenedImage
from chat.reading import Reading


@dataclass(frozen=True)
class Prefix:
    """What can be reused: the reading, and how many tokens and images of the new dialogue it already has."""

    reading: Reading
    tokens: int
    images: int


class PrefixCache:
    """Remembers one dialogue's reading, and hands out the part of it that a new dialogue starts with as well.

    Tokens are the same where their ids are, images where their bytes are. The reading leaves this place while
    it is in use: a computation that fails half way costs the reuse, never a wrong answer.
    """

    def __init__(self, new: Callable[[], Reading]) -> None:
        self._new = new
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._reading: Reading | None = None
        self._ids = np.empty(0, dtype=np.int64)
        self._images: tuple[OpenedImage, ...] = ()

    @torch.inference_mode()
    def take(self, ids: np.ndarray, is_image: np.ndarray, images: tuple[OpenedImage, ...]) -> Prefix:
        """The longest start of a dialogue that has been read.

        `is_image` [S] marks the tokens of the `images` among the `ids` [S] of the new dialogue. At least
        one token is left to compute: the answer's first token comes from the last one's logits.
        """
        reading, known_ids, known_images = self._reading, self._ids, self._images
        self.clear()
        tokens, whole = shared_start(known_ids, known_images, ids, is_image, images)
        if reading is None or tokens == 0:
            return Prefix(self._new(), 0, 0)
        reading.cut(is_image[:tokens])
        return Prefix(reading, tokens, whole)

    def put(
        self, reading: Reading, ids: np.ndarray, is_image: np.ndarray, images: tuple[OpenedImage, ...]
    ) -> None:
        """Remember the `reading` of a dialogue of these `ids` [S], of which the last may not be in it."""
        self.clear()
        if covered := reading.covered(is_image):
            self._reading, self._ids, self._images = reading, ids[:covered].copy(), images


def shared_start(
    known_ids: np.ndarray,
    known_images: Sequence[OpenedImage],
    ids: np.ndarray,
    is_image: np.ndarray,
    images: Sequence[OpenedImage],
) -> tuple[int, int]:
    """How many tokens and images a known dialogue and another, but for its last token, start with alike."""
    tokens = _common_length(known_ids, ids[:-1])
    whole = sum(1 for _ in takewhile(_same, zip(known_images, images, strict=False)))
    if images:
        places = np.flatnonzero(is_image)  # [n * tokens of an image]
        length = len(places) // len(images)
        whole = min(whole, int((places < tokens).sum()) // length)
        if whole < len(images):  # the first image that is another, or read in part, ends what is shared
            tokens = min(tokens, int(places[whole * length]))
    return tokens, whole


def _same(pair: tuple[OpenedImage, OpenedImage]) -> bool:
    return pair[0] is pair[1] or pair[0].digest == pair[1].digest


def _common_length(left: np.ndarray, right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size
