"""Linear probes that show the miniature decoder, while it is pretrained, where to put what it is shown.

A picture's tokens do not know their number under multi-modal causal attention, so a decoder has to gather them in the
words that follow, which do. Answers alone teach that slowly. So the probes ask for it: the first words after what
stands for a picture are to hold, after a few layers, what its quarters show, one word a quarter, and a layer later the
picture's number. By then the word before an answer is to hold what the question asked, and another layer later the
number, where the answer names a picture. The probes are thrown away in the end; the decoder learnt from words alone all
the same.

Source: Lee et al., "Deeply-Supervised Nets", 2015 (arXiv:1409.5185).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast

from helper.miniature.dialogues import COMPARING_KINDS, DESCRIPTION, KINDS
from helper.miniature.scenes import COLORS, POSITIONS, SHAPES
from helper.miniature.text_batches import TextBatch

_MOST_PICTURES = 3
_QUARTERS = len(POSITIONS)
_LONGEST_QUESTION = 20  # tokens, with what stands before its answer
_KINDS = (*KINDS, DESCRIPTION)


class Probes(nn.Module):
    """What the words behind a picture know of it.

    Args:
        hidden_size: of the decoder.
        layer: after so many layers, colour, form and place of the quarters are asked for; after one more, the picture's
            number and the words of a question; and after two more, the number in an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, hidden_size: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.colors = _tokens(tokenizer, tuple(COLORS), 0)
        self.shapes = _tokens(tokenizer, SHAPES, 0)
        self.places = _tokens(tokenizer, POSITIONS, -1)
        self.digits = tokenizer.convert_tokens_to_ids([str(number + 1) for number in range(_MOST_PICTURES)])
        self.color = nn.Linear(hidden_size, len(self.colors) + 1)  # the last one: no thing
        self.shape = nn.Linear(hidden_size, len(self.shapes) + 1)
        self.place = nn.Linear(hidden_size, len(self.places) + 1)
        self.number = nn.Linear(hidden_size, _MOST_PICTURES)
        self.asked = nn.ModuleList(
            nn.Linear(hidden_size, len(words) + 1)
            for words in (self.colors, self.shapes, self.places, self.digits)
        )
        self.kind = nn.Linear(hidden_size, len(_KINDS))
        self.answer = nn.Linear(hidden_size, _MOST_PICTURES)

    def forward(self, batch: TextBatch, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss over a batch's pictures and answers; `hidden_states` [B, S, D] go into the layers, one by one."""
        return (
            self._pictures(batch, hidden_states)
            + self._questions(batch, hidden_states[self.layer + 1])
            + self._answers(batch, hidden_states[self.layer + 2])
        )

    def _pictures(self, batch: TextBatch, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        rows, ends = _pictures(batch.passage)
        if not len(rows):
            return hidden_states[0].new_zeros(())
        quarters = torch.arange(_QUARTERS)
        said = torch.cat([batch.ids[..., None], batch.more], -1)
        said = said[rows[:, None], ends[:, None] + 1 - _QUARTERS + quarters]  # [N, 4, 3]
        behind = rows[:, None], ends[:, None] + 1 + quarters
        things, numbers = (_normed(hidden_states[self.layer + more][behind]) for more in (0, 1))  # [N, 4, D]
        number = batch.passage[rows, ends][:, None].expand(-1, _QUARTERS)
        return (
            _loss(self.color(things), _index(said, self.colors))
            + _loss(self.shape(things), _index(said, self.shapes))
            + _loss(self.place(things), _index(said, self.places))
            + _loss(self.number(numbers), number)
        )

    def _questions(self, batch: TextBatch, hidden: torch.Tensor) -> torch.Tensor:
        rows, places, words = _questions(batch)
        if not len(rows):
            return hidden.new_zeros(())
        before = _normed(hidden[rows, places])  # [N, D]
        kinds = [
            _KINDS.index(batch.kinds[row][index])
            for row, index in zip(rows.tolist(), batch.answer[rows, places + 1].tolist(), strict=True)
        ]
        loss = F.cross_entropy(self.kind(before), torch.tensor(kinds))
        for probe, tokens in zip(
            self.asked, (self.colors, self.shapes, self.places, self.digits), strict=True
        ):
            loss = loss + F.cross_entropy(probe(before), _index(words[:, None], tokens)[:, 0])
        return loss

    def _answers(self, batch: TextBatch, hidden: torch.Tensor) -> torch.Tensor:
        rows, places = _digits_of_pictures(batch)
        if not len(rows):
            return hidden.new_zeros(())
        number = _index(batch.ids[rows, places][:, None, None], self.digits)[:, 0]
        index = batch.answer[rows, places]
        first = (batch.answer[rows] == index[:, None]).int().argmax(1)
        return F.cross_entropy(self.answer(_normed(hidden[rows, first - 1])), number)


def _questions(batch: TextBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row and place of the word before every answer about pictures, and what the question says, [N, words].

    Its words are those since the last answer or picture, at most `_LONGEST_QUESTION`; the others are -1.
    """
    spoken = F.pad(batch.answer, (1, 0), value=-1)[:, :-1]
    first = (batch.answer >= 0) & (spoken != batch.answer) & (batch.passage >= 0).any(1, keepdim=True)
    rows, places = first.nonzero(as_tuple=True)
    back = places[:, None] - 1 - torch.arange(_LONGEST_QUESTION)  # [N, words]
    at = rows[:, None], back.clamp(min=0)
    within = ((back >= 0) & (batch.answer[at] < 0) & (batch.passage[at] < 0)).int().cumprod(1).bool()
    return rows, places - 1, torch.where(within, batch.ids[at], -1)


def _digits_of_pictures(batch: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and place of the digit in every answer that names a picture: its last token but the end."""
    comparing = torch.zeros_like(batch.answer, dtype=torch.bool)
    for row, kinds in enumerate(batch.kinds):
        named = [index for index, kind in enumerate(kinds) if kind in COMPARING_KINDS]
        comparing[row] = torch.isin(batch.answer[row], torch.tensor(named, dtype=torch.long))
    last = comparing & (F.pad(batch.answer[:, 1:], (0, 1), value=-1) != batch.answer)
    rows, ends = last.nonzero(as_tuple=True)
    return rows, ends - 1


def _pictures(passage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and last place of every passage that has a token for each quarter and for the whole, and words behind."""
    padded = F.pad(passage, (_QUARTERS, _QUARTERS + 1), value=-1)
    size = passage.shape[1]
    whole = padded[:, :size] == passage  # the same passage began at least a quarter's number before
    last = padded[:, _QUARTERS + 1 : _QUARTERS + 1 + size] != passage
    rows, ends = ((passage >= 0) & whole & last).nonzero(as_tuple=True)
    near = ends + _QUARTERS < size
    return rows[near], ends[near]


def _index(said: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Which of `tokens` is among each quarter's, [N, 4]; their number where none is."""
    index = torch.full(said.shape[:2], len(tokens))
    for place, token in enumerate(tokens):
        index[(said == token).any(-1)] = place
    return index


def _tokens(tokenizer: PreTrainedTokenizerFast, words: Sequence[str], which: int) -> list[int]:
    """Of each word the first (0) or last (-1) token, by which it is known."""
    return [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][which] for word in words]


def _normed(hidden: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:])


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())
