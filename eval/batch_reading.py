"""Answers to a batch of prompts whose images come out of a store: text alone goes through the decoder.

What all prompts of a batch start with is read once; prompts that ask about the same pictures share most of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

from chat.image_store import ImageStore
from chat.opened_images import OpenedImage
from chat.placed_images import Placed, place
from chat.prefix_cache import PrefixCache, shared_start
from chat.reading import TextBesideImages, read_text
from chat.sampling import TokenChooser
from utils.model.images_beside import ImagesBeside, causal_mask
from utils.model.text_cache import growing_cache


@dataclass(frozen=True, eq=False)
class BatchPrompt:
    """One row: `is_image` [S] marks the tokens of the `images` among the `ids` [S]; `room` is the answer's."""

    ids: np.ndarray
    is_image: np.ndarray
    images: tuple[OpenedImage, ...]
    room: int


class BatchReader:
    """Reads prompts side by side and generates their answers, a token at a time for all rows at once."""

    def __init__(
        self, model: PreTrainedModel, store: ImageStore, chooser: TokenChooser, eos_ids: frozenset[int]
    ) -> None:
        self._model, self._store, self._chooser = model, store, chooser
        self._eos = torch.tensor(sorted(eos_ids))
        self._prefix = PrefixCache(lambda: TextBesideImages(model, store))

    @torch.inference_mode()
    def answers(self, prompts: Sequence[BatchPrompt]) -> list[list[int]]:
        """The tokens of each row's answer, without the one that ends it."""
        common = _common_start(prompts)
        cache = self._read_start(prompts[0], common, rows=len(prompts))
        rows = _Rows(prompts, self._store, read=int((~prompts[0].is_image[:common]).sum()))
        rooms = torch.tensor([prompt.room for prompt in prompts])
        most = int(rooms.max())
        ids = _beside_each_other(prompts, most)  # [B, S + most]
        width = ids.shape[1] - most
        ended = torch.zeros_like(rooms, dtype=torch.bool)
        logits = read_text(self._model, cache, rows.ids, rows.places, rows.prompt())
        for step in range(most):
            ids[:, width + step] = tokens = self._chooser.choose(ids[:, : width + step], logits)
            ended |= torch.isin(tokens, self._eos) | (rooms <= step + 1)
            if bool(ended.all()):
                break
            new = tokens[:, None].to(rows.ids.device)
            logits = read_text(self._model, cache, new, rows.lengths[:, None] + step, rows.step(step))
        return [self._until_end(row[width:], prompt.room) for row, prompt in zip(ids, prompts, strict=True)]

    def _until_end(self, answer: torch.Tensor, room: int) -> list[int]:
        ends = torch.isin(answer, self._eos).nonzero()
        return answer[: min(int(ends[0]), room) if len(ends) else room].tolist()

    def _read_start(self, prompt: BatchPrompt, tokens: int, rows: int) -> Cache:
        """Read the first `tokens` of a prompt, unless the last batch began with them; repeated for all rows."""
        cache = growing_cache()
        if not tokens:
            return cache
        ids, is_image = prompt.ids[:tokens], prompt.is_image[:tokens]
        images = prompt.images[: _images_within(prompt, tokens)]
        prefix = self._prefix.take(ids, is_image, images)
        prefix.reading.read(ids, is_image, images)
        for layer, (keys, values) in enumerate(prefix.reading.text_states()):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        self._prefix.put(prefix.reading, ids, is_image, images)
        return cache


class _Rows:
    """The text that is left to read of B prompts, flush right: R tokens, of which `read` are cached before.

    ids, places: [B, R] token ids and positions. lengths: [B] tokens of each prompt, images included.
    """

    def __init__(self, prompts: Sequence[BatchPrompt], store: ImageStore, read: int) -> None:
        texts = [np.flatnonzero(~prompt.is_image) for prompt in prompts]
        most = max(map(len, texts)) - read
        ids, places, seen = (np.zeros((len(prompts), most), np.int64) for _ in range(3))
        real = np.zeros((len(prompts), most), bool)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            own = slice(most + read - len(text), None)
            places[row, own] = text[read:]
            ids[row, own] = prompt.ids[text[read:]]
            seen[row, own] = text[read:] - np.arange(read, len(text))  # all before it but the text
            real[row, own] = True
        device = store.maker.device
        self.ids, self.places, self._seen, self._real = (
            torch.from_numpy(each).to(device) for each in (ids, places, seen, real)
        )
        self.lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        self._read, self._padded = read, not real.all()
        self._placed = _placed(prompts, store)
        totals = self._seen[:, -1:]  # [B, 1]: the last token sees all
        self._uneven = totals if len(set(self._placed.lengths)) > 1 else None

    def prompt(self) -> ImagesBeside:
        """Who sees whom while the prompts are read."""
        rows = self.ids.shape[1]
        mask = causal_mask(rows, self._read + rows, self.ids.device)
        if self._padded:
            own = torch.eye(rows, dtype=torch.bool, device=self.ids.device)  # a softmax needs a key
            new = mask[..., self._read :] & (self._real[:, None, None, :] | own)
            mask = torch.cat([mask[..., : self._read].expand(len(new), -1, -1, -1), new], dim=-1)
        return ImagesBeside(self._placed.keys, self._placed.values, self._seen, mask)

    def step(self, number: int) -> ImagesBeside:
        """Who sees whom in a step of generation, counted from 0."""
        mask = None
        if self._padded:
            batch = len(self.ids)
            before, after = (self._real.new_ones(batch, length) for length in (self._read, number + 1))
            mask = torch.cat([before, self._real, after], dim=1)[:, None, None]
        return ImagesBeside(self._placed.keys, self._placed.values, self._uneven, mask)


def _placed(prompts: Sequence[BatchPrompt], store: ImageStore) -> Placed:
    found = store.states([image for prompt in prompts for image in prompt.images]).states
    states = iter(found)
    rows = [[next(states) for _ in prompt.images] for prompt in prompts]
    starts = []
    for prompt in prompts:
        tokens = np.flatnonzero(prompt.is_image)
        starts.append(tokens.reshape(len(prompt.images), -1)[:, 0].tolist() if prompt.images else [])
    return place(store.maker, rows, starts)


def _common_start(prompts: Sequence[BatchPrompt]) -> int:
    """How many tokens all prompts start with, the last of them text; at least one of each is left."""
    first = prompts[0]
    tokens = min(
        shared_start(first.ids, first.images, each.ids, each.is_image, each.images)[0] for each in prompts
    )
    text = np.flatnonzero(~first.is_image[:tokens])
    return int(text[-1]) + 1 if len(text) else 0


def _images_within(prompt: BatchPrompt, tokens: int) -> int:
    per_image = int(prompt.is_image.sum()) // max(len(prompt.images), 1)
    return int(prompt.is_image[:tokens].sum()) // per_image if per_image else 0


def _beside_each_other(prompts: Sequence[BatchPrompt], room: int) -> torch.Tensor:
    """Whole prompts, flush right before `room` tokens: [B, S + room]; each filled up with its own first token,
    so that a penalty for repetition sees nothing that is not in it."""
    most = max(len(prompt.ids) for prompt in prompts)
    ids = np.zeros((len(prompts), most + room), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, :most] = prompt.ids[0]
        ids[row, most - len(prompt.ids) : most] = prompt.ids
    return torch.from_numpy(ids)
