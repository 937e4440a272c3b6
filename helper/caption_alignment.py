"""A linear projection fitted to captions: which of a picture's tokens shows which phrase, found without a gradient.

First the projection is fitted so that a picture's tokens, all together, are the sum of the embeddings of its caption's
words, by ridge regression. Then, in turns, each phrase of a caption is given to the token that comes nearest to it, and
the projection is fitted to show at each token its phrase, until the phrases stay where they are:
expectation-maximisation with hard assignments, as words of two languages are aligned (Brown et al., "The Mathematics of
Statistical Machine Translation", 1993). Phrases go to tokens one to one (Kuhn, "The Hungarian method for the assignment
problem", 1955; scipy's implementation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

_AT_ONCE = 32  # pictures
_SETTLED = 1e-3  # of the tokens: when no more of them change their phrase, the alignment is done
_BREAK = re.compile(r"[,.:;!?\n]+")


def phrases(caption: str) -> list[str]:
    """What stands between the caption's marks: "two cats: a grey one, a red one" has three."""
    return [part.strip() for part in _BREAK.split(caption) if part.strip()]


def fitted(
    features: torch.Tensor, said: Sequence[torch.Tensor], ridge: float, rounds: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight [E, D], bias [E] and R2 of the projection from tokens [N, S, D] to N captions' phrases [phrases, E].

    `ridge` is added to the mean square of each input; after `rounds` the alignment ends, if not before.
    """
    together = _Sums()
    sums = F.pad(features.sum(1), (0, 1), value=features.shape[1])  # the bias comes with every token
    together.add(sums, torch.stack([each.sum(0) for each in said]))
    solution, explained = together.solved(ridge)
    places = torch.full(features.shape[:2], -1)
    bar = tqdm(range(rounds), desc="aligning phrases", unit="round")
    for _ in bar:
        each_token, moved = _Sums(), 0
        for begin in range(0, len(features), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            rows = F.pad(features[part], (0, 1), value=1.0)  # [n, S, D + 1]
            now = best_places(rows @ solution.float(), said[part])
            moved += int((now != places[part]).sum())
            places[part] = now
            each_token.add(rows.flatten(0, 1), _phrase_of_each(now, said[part]).flatten(0, 1))
        solution, explained = each_token.solved(ridge)
        bar.set_postfix(moved=f"{moved / places.numel():.2%}")
        if moved <= _SETTLED * places.numel():
            break
    bar.close()
    return solution[:-1].T.float(), solution[-1].float(), explained


def best_places(shown: torch.Tensor, said: Sequence[torch.Tensor]) -> torch.Tensor:
    """For each token the index of the phrase that it shows, -1 for none, [N, S].

    Each phrase has at most one token and each token at most one phrase, and as many phrases as can have one; of all
    such choices the one with the least squared distance of tokens to their phrases, or to zero where they have none.

    Args:
        shown: tokens of N pictures, [N, S, E].
        said: phrases of each picture's caption, N tensors of [phrases, E].
    """
    places = torch.full(shown.shape[:2], -1)
    for tokens, words, place in zip(shown, said, places, strict=True):
        gain = 2 * tokens @ words.T - words.square().sum(-1)  # |token|^2 - |token - phrase|^2, [S, phrases]
        chosen, phrase = linear_sum_assignment(gain.numpy(), maximize=True)
        place[chosen] = torch.from_numpy(phrase)
    return places


def _phrase_of_each(places: torch.Tensor, said: Sequence[torch.Tensor]) -> torch.Tensor:
    """The phrases [n, S, E] of tokens that show those at `places` [n, S]; zeros at -1."""
    nothing = said[0].new_zeros(1, said[0].shape[1])
    return torch.stack(
        [torch.cat([words, nothing])[place] for words, place in zip(said, places, strict=True)]
    )


class _Sums:
    """What ridge regression needs of all rows x [D + 1] and targets y [E], whatever their number; in float64."""

    def __init__(self) -> None:
        self.rows, self.inner, self.cross, self.mean, self.squares = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Take in rows [N, D + 1] and targets [N, E]."""
        inputs, targets = inputs.double(), targets.double()
        self.rows += len(inputs)
        self.inner = self.inner + inputs.T @ inputs
        self.cross = self.cross + inputs.T @ targets
        self.mean = self.mean + targets.sum(0)
        self.squares += float(targets.square().sum())

    def solved(self, ridge: float) -> tuple[torch.Tensor, float]:
        """The solution [D + 1, E] and R2; `ridge` is added to the mean square of each input."""
        damped = self.inner + ridge * self.rows * torch.eye(len(self.inner), dtype=torch.float64)
        solution = torch.linalg.solve(damped, self.cross)
        left = self.squares - 2 * (solution * self.cross).sum() + (solution * (self.inner @ solution)).sum()
        spread = self.squares - self.mean.square().sum() / self.rows
        return solution, 1 - float(left / spread)
