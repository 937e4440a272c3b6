"""Batches of texts for the miniature decoder: which tokens are answers, and how captions are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import utils.model  # noqa: F401 - registers mmca
from helper.miniature.lessons import Lesson
from helper.miniature.scenes import POSITIONS

_PADDING = 0  # the unknown token, which no text holds
_NOISE = 1.0  # at most, of what stands for a picture, in loudnesses of a word


@dataclass(frozen=True)
class TextBatch:
    """`ids` [B, S]; `answer` [B, S]: index of the answer a token belongs to, -1 elsewhere; `kinds` of those answers.

    `more` [B, S, 2]: what else a token stands for, -1 for nothing more; `ids` -1 stands for nothing at all, as an empty
    part of a picture. `passage` [B, S]: index of the passage that a token stands for a part of, in the place of a
    picture's tokens; -1 for words.
    """

    ids: torch.Tensor
    more: torch.Tensor
    answer: torch.Tensor
    passage: torch.Tensor
    kinds: list[list[str]]

    def read_by(self, decoder: LlamaForCausalLM) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The last hidden states [B, S, D] of `decoder`, and those that go into each of its layers.

        Its attention is set to multi-modal causal attention, which over words is plain causal attention.
        """
        decoder.set_attn_implementation("mmca")
        kinds = (self.passage >= 0).long()
        output = decoder.model(
            inputs_embeds=self.embedded(decoder.get_input_embeddings()),
            attention_mask=torch.ones_like(kinds),
            mm_token_type_ids=kinds,
            use_cache=False,
            output_hidden_states=True,
        )
        return output.last_hidden_state, output.hidden_states

    def embedded(self, embedding: torch.nn.Embedding) -> torch.Tensor:
        """Tokens [B, S, D]. Those of passages are what a projector gives: they end in a LayerNorm.

        Before it they are the sum of their words, divided by the root of their number to be as loud as one, and noise,
        another amount in every text: a projector that has only begun to learn is to be heard too, or it could not go
        on. Where there are no words it says something all the same.
        """
        words = torch.cat([self.ids[..., None], self.more], -1)  # [B, S, 3]
        real = words >= 0
        vectors = embedding(words.clamp(min=0)) * real[..., None]
        tokens = vectors.sum(2) / real.sum(2, keepdim=True).clamp(min=1).sqrt()
        if (self.passage < 0).all():
            return tokens
        loudness = embedding.weight.detach().square().mean().sqrt()
        amount = _NOISE * torch.rand(len(tokens), 1)
        noise = torch.randn_like(tokens) * loudness * torch.where(self.ids < 0, 1.0, amount)[..., None]
        shown = F.layer_norm(tokens + noise, tokens.shape[-1:])
        return torch.where(self.passage[..., None] >= 0, shown, tokens)


def draw_batch(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, lesson: Lesson, held_out: bool = False
) -> TextBatch:
    """Draws the texts of one step: as many as come to about `lesson.tokens` tokens."""
    breaks, places = tokenizer.convert_tokens_to_ids([":", ","]), _places(tokenizer)
    rows, tokens = [], 0
    while tokens < lesson.tokens:
        written = lesson.draw(rng, held_out)
        encoded = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = np.array(encoded["input_ids"]), np.array(encoded["offset_mapping"])[:, 0]
        answer = _spans_at(starts, [(begin, end) for begin, end, _ in written.answers])
        passage = _spans_at(starts, written.passages)
        more = np.full((len(ids), 2), -1)
        if lesson.summed and rng.random() < lesson.summed:
            ids, more, answer, passage = _summed(ids, answer, passage, breaks, places)
        else:
            passage[:] = -1
        rows.append((ids, more, answer, passage, [kind for *_, kind in written.answers]))
        tokens += len(ids)
    # Padded on the right, where causal attention needs no mask for it.
    ids, more, answer, passage = (
        torch.from_numpy(_padded(each, fill))
        for each, fill in zip(list(zip(*rows, strict=True))[:4], (_PADDING, -1, -1, -1), strict=True)
    )
    return TextBatch(ids, more, answer, passage, [kinds for *_, kinds in rows])


def _places(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that end the name of each quarter, by which it is known."""
    places = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"][-1] for name in POSITIONS]
    if len(set(places)) < len(places):
        raise ValueError(f"the tokenizer ends two of {', '.join(POSITIONS)} alike")
    return places


def _summed(
    ids: np.ndarray, answer: np.ndarray, passage: np.ndarray, breaks: Sequence[int], places: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same text with passages as an encoder would show them: a token for the whole, and one for each quarter.

    Words of a passage between two of the `breaks` become one token; the breaks go. A quarter without a thing is a token
    of no words. A passage that is a single word stays a single token.
    """
    words, answers, passages = [], [], []
    for begin, end in _runs(passage):
        index = passage[begin]
        if index < 0:
            shown = [[token] for token in ids[begin:end]]
        else:
            shown = _split(ids[begin:end], breaks)
            if len(shown) > 1:
                whole, *things = shown
                at = {places.index(thing[-1]): thing for thing in things}
                shown = [whole, *(at.get(place, []) for place in range(len(places)))]
        words += [[*each, -1, -1, -1][:3] for each in shown]
        answers += answer[begin:end].tolist() if index < 0 else [-1] * len(shown)
        passages += [index] * len(shown)
    padded = np.array(words)
    return padded[:, 0], padded[:, 1:], np.array(answers), np.array(passages)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of equal values begin and end."""
    borders = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(pairwise(borders))


def _split(tokens: np.ndarray, breaks: Sequence[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens.tolist():
        if token in breaks:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


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
