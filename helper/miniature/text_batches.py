"""Batches of texts for the miniature decoder: which tokens are answers, and how captions are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import utils.model  # noqa: F401 - registers mmca
from helper.miniature.lessons import Lesson

_PADDING = 0  # the unknown token, which no text holds


@dataclass(frozen=True)
class TextBatch:
    """`ids` [B, S]; `answer` [B, S]: index of the answer a token belongs to, -1 elsewhere; `kinds` of those answers.

    `more` [B, S, 2]: what else a token stands for, -1 for nothing more. `passage` [B, S]: index of the passage that a
    token belongs to, -1 for none. `summed` says how passages are read: as multi-modal causal attention reads pictures,
    or else so that their tokens see all of their own passage that stands before them, and nothing else.
    """

    ids: torch.Tensor
    more: torch.Tensor
    answer: torch.Tensor
    passage: torch.Tensor
    kinds: list[list[str]]
    summed: bool = False

    def read_by(self, decoder: LlamaForCausalLM) -> torch.Tensor:
        """The last hidden states [B, S, D] of `decoder`, whose attention is set to what these texts ask for."""
        embedded = self.embedded(decoder.get_input_embeddings())
        if self.summed:
            decoder.set_attn_implementation("mmca")
            kinds = (self.passage >= 0).long()
            seen = {"attention_mask": torch.ones_like(kinds), "mm_token_type_ids": kinds}
        else:
            decoder.set_attn_implementation("sdpa")
            seen = {"attention_mask": self.visible()}
        return decoder.model(inputs_embeds=embedded, use_cache=False, **seen).last_hidden_state

    def embedded(self, embedding: torch.nn.Embedding) -> torch.Tensor:
        """Tokens [B, S, D]; one that stands for n words is their sum, divided by the root of n to be as loud as one."""
        words = torch.cat([self.ids[..., None], self.more], -1)  # [B, S, 3]
        real = words >= 0
        vectors = embedding(words.clamp(min=0)) * real[..., None]
        return vectors.sum(2) / real.sum(2, keepdim=True).sqrt()

    def visible(self) -> torch.Tensor | None:
        """Who sees whom, [B, 1, S, S]; None where that is plain causal attention."""
        if (self.passage < 0).all():
            return None
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        asks, asked = self.passage[:, :, None], self.passage[:, None, :]
        return (causal & ((asks < 0) | (asks == asked)))[:, None]


def draw_batch(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, lesson: Lesson, held_out: bool = False
) -> TextBatch:
    """Draws the texts of one step: as many as come to about `lesson.tokens` tokens."""
    breaks = tokenizer.convert_tokens_to_ids([":", ","])
    rows, tokens = [], 0
    while tokens < lesson.tokens:
        written = lesson.draw(rng, held_out)
        drawn = rng.random() if lesson.summed or lesson.apart else 1.0
        encoded = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = np.array(encoded["input_ids"]), np.array(encoded["offset_mapping"])[:, 0]
        answer = _spans_at(starts, [(begin, end) for begin, end, _ in written.answers])
        passage = _spans_at(starts, written.passages)
        more = np.full((len(ids), 2), -1)
        if drawn < lesson.summed:
            ids, more, answer, passage = _summed(ids, answer, passage, breaks)
        elif drawn >= lesson.apart:
            passage[:] = -1
        rows.append((ids, more, answer, passage, [kind for *_, kind in written.answers]))
        tokens += len(ids)
    # Padded on the right, where causal attention needs no mask for it.
    ids, more, answer, passage = (
        torch.from_numpy(_padded(each, fill))
        for each, fill in zip(list(zip(*rows, strict=True))[:4], (_PADDING, -1, -1, -1), strict=True)
    )
    return TextBatch(ids, more, answer, passage, [kinds for *_, kinds in rows], lesson.summed > 0)


def _summed(
    ids: np.ndarray, answer: np.ndarray, passage: np.ndarray, breaks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same text with one token for each thing of a passage.

    Words of a passage between two of the `breaks` become one token; the breaks go.
    """
    kept, words = [], []
    for place, (token, inside) in enumerate(zip(ids, passage, strict=True)):
        if inside < 0 or place == 0 or passage[place - 1] != inside or ids[place - 1] in breaks:
            kept.append(place)
            words.append([token])
        elif token not in breaks:
            words[-1].append(token)
    padded = np.array([[*each, -1, -1][:3] for each in words])
    return padded[:, 0], padded[:, 1:], answer[kept], passage[kept]


def _spans_at(starts: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """For tokens that begin at the characters `starts`, the index of the span each lies in, -1 for none."""
    at = np.full(len(starts), -1)
    for index, (begin, end) in enumerate(spans):
        at[(starts >= begin) & (starts < end)] = index
    return at


def _padded(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), fill)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
