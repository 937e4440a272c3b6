"""How the next token is chosen (the most likely one, or a seeded draw), and how tokens become text: in pieces as they
come, and as the later rounds will see it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from utils.commands import UsageError


class SamplingError(UsageError):
    """A setting that makes no sense; the message names it."""


@dataclass(frozen=True)
class Sampling:
    """Settings of generation; `temperature` 0 is greedy, and then `top_p`, `top_k` and `seed` have no effect.

    `seed` starts a generator of the session's or the request's own: other random numbers in the process, or other
    answers that are given together with this one, do not disturb it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise SamplingError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise SamplingError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if self.repetition_penalty <= 0:
            raise SamplingError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1: none)"
            )


class TokenChooser:
    """Chooses one token after another by `sampling`, but never one of the ids in `suppressed`."""

    def __init__(self, sampling: Sampling, suppressed: Sequence[int] = ()) -> None:
        self._greedy = sampling.temperature == 0
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._warpers = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._warpers.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if suppressed:
            self._warpers.append(SuppressTokensLogitsProcessor(list(suppressed)))
        if self._greedy:
            return
        self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """The next token after `ids` [1, S], given the `logits` [1, V] of the last of them."""
        scores = self._warpers(ids, logits)  # [1, V]
        if self._greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))


EMPTY_ANSWER = "(no answer)"
"""Stands in a dialogue where the model answered with nothing: a turn cannot go without an answer."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns token ids into text as they arrive; the pieces joined are the answer, with no space at its ends.

    A piece is held back while it ends in half a character or in white space. Only the tokens since the last
    piece are decoded again, so a long answer costs no more per token than a short one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # tokens whose text has been taken over
        self._context = 0  # decoding starts here: the tokens of the piece before, which decide about spaces
        self._space = ""  # white space held back: it may be the answer's end
        self.text = ""

    def push(self, token: int) -> str:
        """Take one more token; returns the text that is now certain, often a word, sometimes nothing."""
        self._ids.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """The rest, where the answer ends in an incomplete character."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._decoded(self._ids[self._context : self._shown])
        now = self._decoded(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not final):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        grown = self._space + now[len(before) :]
        if not self.text:
            grown = grown.lstrip()
        piece = grown.rstrip()
        self._space = grown[len(piece) :]
        self.text += piece
        return piece

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def recordable(answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """An answer as it can stand in the dialogue that the model reads next.

    A model may spell out a reserved string such as `<image>` letter by letter; it would be refused in the
    next round's prompt, so it is taken out here. An answer that is empty becomes `EMPTY_ANSWER`.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    while found := [token for token in special if token in answer]:  # taking one out may put another together
        for token in found:
            answer = answer.replace(token, "")
    return answer.strip() or EMPTY_ANSWER
