"""How the next token is chosen: the most likely one, or a seeded draw."""

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
