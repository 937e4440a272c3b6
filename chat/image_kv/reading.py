"""Text read over images out of a store: text alone goes through the decoder, the images' keys and values beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from chat.generation.reading import Prompt, Reading, RowImages, Work
from chat.image_kv.encoder import CachedImageKV, ImageKV, ImageKVEncoder, SharedImages, causal_mask
from chat.images import View
from utils.model.computed_rows import ROWS, ComputedRows, picks_rows
from utils.model.generation_visual_chat import CACHE
from utils.model.mmca_layout import NO_MASK


@dataclass(frozen=True)
class Found:
    """The keys and values of the images asked for, and how many of them this call computed."""

    states: tuple[ImageKV, ...]
    computed: int


class Store(Protocol):
    """Where they come from: a `chat.image_kv.store.ImageStore`."""

    encoder: ImageKVEncoder

    def states(self, images: Sequence[View]) -> Found: ...


class CachedImageReading(Reading):
    """Only text goes through the decoder; images come out of a store and stand beside it.

    Rows that have the same images at the same places share their keys and values.
    """

    def __init__(self, model: PreTrainedModel, store: Store, size: int = 1) -> None:
        super().__init__(model, size)
        self._store = store

    def _read(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, np.ndarray, list[RowImages], Work]:
        if any(prompt.is_image[-1] for prompt in prompts):
            raise ValueError(
                "the prompt ends with an image; its chat template has to write text before answers"
            )
        images, summaries, work = self._with_new_images(prompts)
        device, known = self._store.encoder.device, self._real.sum(axis=1)
        texts = [np.flatnonzero(~prompt.is_image) for prompt in prompts]
        most = max(len(text) - read for text, read in zip(texts, known, strict=True))
        ids, places, seen = (np.zeros((len(prompts), most), np.int64) for _ in range(3))
        real = np.zeros((len(prompts), most), bool)
        for row, (prompt, text, read) in enumerate(zip(prompts, texts, known, strict=True)):
            new = slice(most - (len(text) - read), None)
            places[row, new] = text[read:]
            ids[row, new] = prompt.ids[text[read:]]
            seen[row] = prompt.is_image.sum()  # what stands for no token may see all
            seen[row, new] = text[read:] - np.arange(read, len(text))  # all before it but the text
            real[row, new] = True
        beside = CachedImageKV(
            _shared(images, seen, device),
            _text_mask(np.concatenate([self._real, real], axis=1), most, device),
        )
        decoder, new_ids = self._model.model.language_model, torch.from_numpy(ids).to(device)
        embedded = self._model.get_input_embeddings()(new_ids)
        if summaries:
            is_summary = new_ids == self._model.config.image_summary_token_id
            embedded = embedded.masked_scatter(is_summary[..., None], torch.stack(summaries).to(embedded))
        last = torch.arange(most - 1, len(prompts) * most, most, device=device)
        hidden = decoder(
            inputs_embeds=embedded,
            attention_mask=NO_MASK.to(device),
            position_ids=torch.from_numpy(places).to(device),
            use_cache=True,
            image_kv=beside,
            **self._model.model.gate_arguments(),
            **{CACHE: self._cache},
            **({ROWS: ComputedRows(last)} if most > 1 and picks_rows(decoder) else {}),
        ).last_hidden_state
        work.tokens += int(real.sum())
        return self._model.lm_head(hidden[:, -1]), real, images, work

    def _with_new_images(self, prompts: Sequence[Prompt]) -> tuple[list[RowImages], list[torch.Tensor], Work]:
        """Each row's images, those that are new in its dialogue out of the store and put where they stand in it.

        Also the new images' summaries [D], where the model has such tokens, in the order of rows.
        """
        new = [prompt.images[row.count :] for prompt, row in zip(prompts, self._images, strict=True)]
        if not any(new):
            return self._images, [], Work()
        found = self._store.states([image for images in new for image in images])
        length = found.states[0].keys[0].shape[1]  # tokens of an image
        states, shared, rows = iter(found.states), {}, []
        for prompt, row, images in zip(prompts, self._images, new, strict=True):
            starts = tuple(np.flatnonzero(prompt.is_image)[row.count * length :: length].tolist())
            theirs = [next(states) for _ in images]
            key = (id(row), starts, *map(id, theirs))
            if key not in shared:
                shared[key] = self._followed(row, theirs, starts)
            rows.append(shared[key])
        has_summaries = self._model.config.image_summary_token_id is not None
        summaries = [each.summary for each in found.states] if has_summaries else []
        return rows, summaries, Work(found.computed * length, found.computed * length, found.computed)

    def _followed(self, row: RowImages, states: Sequence[ImageKV], starts: Sequence[int]) -> RowImages:
        """A row's images, and more behind them at the places where they start."""
        if not states:
            return row
        encoder = self._store.encoder
        places = [
            torch.arange(start, start + each.keys[0].shape[1])
            for start, each in zip(starts, states, strict=True)
        ]
        rotations = encoder.rotations(torch.cat(places)[None].to(encoder.device))
        keys, values = [], []
        for layer in range(len(states[0].keys)):
            keys.append(
                encoder.rotate(torch.cat([each.keys[layer] for each in states], dim=1)[None], rotations)
            )
            values.append(torch.cat([each.values[layer] for each in states], dim=1)[None])
        if row.count:
            keys, values = (
                [torch.cat(pair, dim=2) for pair in zip(before, after, strict=True)]
                for before, after in ((row.keys, keys), (row.values, values))
            )
        return RowImages(row.count + len(states), tuple(keys), tuple(values))

    def covered(self, is_image: np.ndarray) -> int:
        length = self._real.shape[1]
        return int(np.flatnonzero(~is_image)[length - 1]) + 1 if length else 0

    def cut(self, is_image: np.ndarray) -> None:
        kept = int(is_image.sum())
        self._crop(len(is_image) - kept)
        (row,) = self._images
        if not kept:
            self._images = [RowImages()]
            return
        count = kept * row.count // row.keys[0].shape[2]
        keys, values = (tuple(each[:, :, :kept] for each in layers) for layers in (row.keys, row.values))
        self._images = [RowImages(count, keys, values)]


def _shared(images: Sequence[RowImages], seen: np.ndarray, device: torch.device) -> list[SharedImages]:
    """The rows that have the same images, together; `seen` [N, Q] image tokens by each new token."""
    sets: dict[int, list[int]] = {}
    for number, row in enumerate(images):
        if row.count:
            sets.setdefault(id(row), []).append(number)
    found = []
    for numbers in sets.values():
        row = images[numbers[0]]
        all_seen = bool((seen[numbers] == row.keys[0].shape[2]).all())
        found.append(
            SharedImages(
                row.keys,
                row.values,
                rows=None if len(numbers) == len(images) else torch.tensor(numbers, device=device),
                seen=None if all_seen else torch.from_numpy(seen[numbers]).to(device),
            )
        )
    return found


def _text_mask(real: np.ndarray, new: int, device: torch.device) -> torch.Tensor | None:
    """Which text tokens each of the last `new` sees: bool [N or 1, 1, Q, T], or None where all are seen.

    real: [N, T], False for what only fills up a row.
    """
    causal = causal_mask(new, real.shape[1], device) if new > 1 else None
    if real.all():
        return causal
    mask = torch.from_numpy(real).to(device)[:, None, None]
    if causal is None:
        return mask
    own = torch.eye(new, dtype=torch.bool, device=device)  # a softmax needs a key
    return causal & (mask | torch.nn.functional.pad(own, (real.shape[1] - new, 0)))
