"""Phrases of captions, and the tokens of pictures that show them.

Source of the one-to-one assignment: Kuhn, "The Hungarian method for the assignment problem", 1955, by scipy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment

_BREAK = re.compile(r"[,.:;!?\n]+")


def phrases(caption: str) -> list[str]:
    """What stands between the caption's marks: "two cats: a grey one, a red one" has three."""
    return [part.strip() for part in _BREAK.split(caption) if part.strip()]


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
