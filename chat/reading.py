"""Reading a dialogue into a decoder: what is computed of it stays, and the next forward reads only what is new.

Two ways with one face. `TextBesideImages`: text alone goes through the decoder, over images out of a store.
`WholeDialogue`: text and images together, for attentions under which images depend on what stands before them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Cache, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.image_store import ImageStore
from chat.opened_images import OpenedImage
from chat.placed_images import Placed, place
from utils.model.cache_name import CACHE
from utils.model.computed_rows import only_rows
from utils.model.images_beside import NO_MASK, ImagesBeside, causal_mask
from utils.model.text_cache import growing_cache


@dataclass
class Work:
    """What went through the model: tokens through the decoder, those of images among them, and images."""

    tokens: int = 0
    image_tokens: int = 0
    encoded_images: int = 0


class Reading(ABC):
    """One dialogue as far as a decoder has read it. `work` is what that took."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = growing_cache()
        self.work = Work()

    @abstractmethod
    def read(self, ids: np.ndarray, is_image: np.ndarray, images: Sequence[OpenedImage]) -> torch.Tensor:
        """Read those of the `ids` [S] that are new; returns the logits [1, V] of what follows the last.

        `is_image` [S] marks the tokens of the `images`.
        """

    @abstractmethod
    def covered(self, is_image: np.ndarray) -> int:
        """How many of its tokens [S] have been read; 0 where a failure has left it half read."""

    @abstractmethod
    def cut(self, is_image: np.ndarray) -> None:
        """Forget all tokens but as many as `is_image` [tokens] has."""

    def text_states(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values [1, Hkv, T, D] of what the cache holds, for each layer."""
        return ((layer.keys, layer.values) for layer in self._cache.layers)

    def _text_length(self) -> int | None:
        """The tokens in the cache; None where a failure has left its layers uneven."""
        lengths = {layer.get_seq_length() for layer in self._cache.layers}
        return lengths.pop() if len(lengths) == 1 else None

    def _crop(self, cache: Cache, length: int) -> None:
        if surplus := cache.get_seq_length() - length:
            cache.crop(-surplus)


class WholeDialogue(Reading):
    """Text and images go through the decoder together, in their order."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        super().__init__(model)
        self._processor = processor
        self._images = 0

    @torch.inference_mode()
    def read(self, ids: np.ndarray, is_image: np.ndarray, images: Sequence[OpenedImage]) -> torch.Tensor:
        device = self._model.device
        new = len(ids) - self._cache.get_seq_length()
        pixels = self._processor.pixel_values(images[self._images :])
        if pixels is not None:
            pixels = pixels.to(device=device, dtype=self._model.dtype)
        output = self._model(
            input_ids=torch.from_numpy(ids[-new:])[None].to(device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
            mm_token_type_ids=torch.from_numpy(is_image)[None].to(device, torch.long),
            pixel_values=pixels,
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.work.tokens += new
        self.work.image_tokens += int(is_image[-new:].sum())
        self.work.encoded_images += len(images) - self._images
        self._images = len(images)
        return output.logits[:, -1]

    def covered(self, is_image: np.ndarray) -> int:
        return self._text_length() or 0

    def cut(self, is_image: np.ndarray) -> None:
        self._crop(self._cache, len(is_image))
        self._images = int(is_image.sum()) // self._processor.image_seq_length


class TextBesideImages(Reading):
    """Only text goes through the decoder; images come out of a store and stand beside it."""

    def __init__(self, model: PreTrainedModel, store: ImageStore) -> None:
        super().__init__(model)
        self._store = store
        self._placed = Placed()
        self._images = 0

    @torch.inference_mode()
    def read(self, ids: np.ndarray, is_image: np.ndarray, images: Sequence[OpenedImage]) -> torch.Tensor:
        if len(images) > self._images:
            self._add(is_image, images)
        if is_image[-1]:
            raise ValueError(
                "the prompt ends with an image; its chat template has to write text before answers"
            )
        device, read = self._store.maker.device, self._cache.get_seq_length()
        places = np.flatnonzero(~is_image)[read:]  # [Q]
        seen = places - np.arange(read, read + len(places))  # image tokens before each: all but the text
        behind_all = seen[0] == is_image.sum()
        ids, places, seen = (torch.from_numpy(each)[None].to(device) for each in (ids[places], places, seen))
        length = places.shape[1]
        beside = ImagesBeside(
            self._placed.keys,
            self._placed.values,
            seen=None if behind_all else seen,
            text_mask=causal_mask(length, read + length, device) if length > 1 else None,
        )
        self.work.tokens += length
        return read_text(self._model, self._cache, ids, places, beside)

    def _add(self, is_image: np.ndarray, images: Sequence[OpenedImage]) -> None:
        """Take images that are new in the dialogue out of the store, and put them where they stand in it."""
        tokens = np.flatnonzero(is_image).reshape(len(images), -1)  # [n, tokens of an image]
        found = self._store.states(images[self._images :])
        starts = tokens[self._images :, 0].tolist()
        self._placed = self._placed.followed_by(place(self._store.maker, [found.states], [starts]))
        self._images = len(images)
        self.work.encoded_images += found.computed
        self.work.image_tokens += found.computed * tokens.shape[1]
        self.work.tokens += found.computed * tokens.shape[1]

    def covered(self, is_image: np.ndarray) -> int:
        length = self._text_length()
        return int(np.flatnonzero(~is_image)[length - 1]) + 1 if length else 0

    def cut(self, is_image: np.ndarray) -> None:
        kept = int(is_image.sum())
        self._crop(self._cache, len(is_image) - kept)
        per_image = sum(self._placed.lengths) // max(self._images, 1)
        self._placed = self._placed.cut(kept)
        self._images = kept // per_image if per_image else 0


def read_text(
    model: PreTrainedModel, cache: Cache, ids: torch.Tensor, places: torch.Tensor, beside: ImagesBeside
) -> torch.Tensor:
    """Text `ids` [B, Q] at positions `places` [B, Q] through the decoder, into `cache`: the last logits [B, V]."""
    decoder = model.model.language_model
    batch, queries = ids.shape
    last = torch.arange(queries - 1, batch * queries, queries, device=ids.device)
    hidden = decoder(
        inputs_embeds=model.get_input_embeddings()(ids),
        attention_mask=NO_MASK.to(ids.device),
        position_ids=places,
        use_cache=True,
        images_beside=beside,
        **model.model.gate_arguments(),
        **{CACHE: cache},
        **(only_rows(decoder, last) if queries > 1 else {}),
    ).last_hidden_state
    return model.lm_head(hidden[:, -1])


def readings(
    model: PreTrainedModel, processor: ProcessorMixin, store: ImageStore | None
) -> Callable[[], Reading]:
    """Starts a new dialogue the way that serves: over the store where there is one."""
    if store is None:
        return lambda: WholeDialogue(model, processor)
    return lambda: TextBesideImages(model, store)
