"""Scores of a checkpoint on a set: overall, by kind of question and by number of images, with confidence intervals."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from eval.metrics import WordOverlap, vqa_accuracy, word_overlap
from utils.answers import is_correct, normalised

WORDS_OF_A_SENTENCE = 5
"""Where a reference has so many words or more, the overlap of words is told beside exact match."""

Key = TypeVar("Key", str, int)

_Z = 1.959964  # of the normal distribution's 95 %


@dataclass(frozen=True)
class Scored:
    """An answer to a question and what it could have been.

    `dialogue` names what it was asked in; `images` is the number of images in the dialogue up to this question.
    """

    answer: str
    references: tuple[str, ...]
    kind: str = ""
    images: int = 0
    dialogue: str = ""


@dataclass(frozen=True)
class Score:
    """Of `count` answers `correct` were right; always the commonest reference would make `majority` right.

    `interval` is the 95 % confidence interval of the accuracy. `vqa` and `overlap` are None where the references
    do not allow them.
    """

    count: int
    correct: int
    majority: int
    majority_answer: str | None
    interval: tuple[float, float]
    vqa: float | None = None
    overlap: WordOverlap | None = None

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def majority_accuracy(self) -> float:
        return self.majority / self.count


@dataclass(frozen=True)
class Scores:
    """`overall`, by kind of question in alphabetical order, and by number of images.

    The overall majority gives each kind its own commonest answer, which is harder to beat than one answer for
    all; its `majority_answer` is None where there are several kinds. So with the numbers of images.
    """

    overall: Score
    kinds: dict[str, Score]
    images: dict[int, Score]


def scores_of(answers: Iterable[Scored]) -> Scores | None:
    """Scores of answers with references; None where there is nothing to score."""
    answers = list(answers)
    if not answers:
        return None
    return Scores(
        _score(answers),
        {kind: _score(group) for kind, group in _groups(answers, lambda scored: scored.kind).items()},
        {number: _score(group) for number, group in _groups(answers, lambda scored: scored.images).items()},
    )


def accuracy_interval(right: Sequence[bool], clusters: Sequence[str]) -> tuple[float, float]:
    """The 95 % confidence interval of the share of `right`, of one or more answers.

    Wilson's interval (1927) over the effective number of answers: those of a dialogue are not independent, so a
    variance between dialogues (`clusters`) that is larger than that of lone answers makes them count for less (Kish
    1965; Korn and Graubard 1998).
    """
    count, share = len(right), sum(right) / len(right)
    surplus: dict[str, float] = {}  # answers right in a dialogue, above what the share would have
    for hit, cluster in zip(right, clusters, strict=True):
        surplus[cluster] = surplus.get(cluster, 0.0) + hit - share
    effect = 1.0
    if len(surplus) > 1 and 0 < share < 1:
        between = sum(value**2 for value in surplus.values()) * len(surplus) / (len(surplus) - 1)
        effect = max(1.0, between / (count * share * (1 - share)))
    effective = count / effect
    middle = share + _Z**2 / (2 * effective)
    reach = _Z * math.sqrt(share * (1 - share) / effective + _Z**2 / (4 * effective**2))
    low, high = (max(0.0, min(1.0, (middle + side) / (1 + _Z**2 / effective))) for side in (-reach, reach))
    return low, high


def _groups(answers: Sequence[Scored], key: Callable[[Scored], Key]) -> dict[Key, list[Scored]]:
    groups: dict[Key, list[Scored]] = {}
    for scored in answers:
        groups.setdefault(key(scored), []).append(scored)
    return dict(sorted(groups.items()))


def _score(group: Sequence[Scored]) -> Score:
    right = [is_correct(scored.answer, scored.references) for scored in group]
    commonest = {
        kind: _commonest(asked) for kind, asked in _groups(group, lambda scored: scored.kind).items()
    }
    vqa = [value for each in group if (value := vqa_accuracy(each.answer, each.references)) is not None]
    sentences = [
        each
        for each in group
        if max(len(reference.split()) for reference in each.references) >= WORDS_OF_A_SENTENCE
    ]
    overlap = None
    if sentences:
        overlap = word_overlap([each.answer for each in sentences], [each.references for each in sentences])
    return Score(
        count=len(group),
        correct=sum(right),
        majority=sum(is_correct(commonest[each.kind], each.references) for each in group),
        majority_answer=next(iter(commonest.values())) if len(commonest) == 1 else None,
        interval=accuracy_interval(right, [each.dialogue for each in group]),
        vqa=sum(vqa) / len(vqa) if vqa else None,
        overlap=overlap,
    )


def _commonest(group: Sequence[Scored]) -> str:
    """The answer that is right most often."""
    counts = Counter(answer for each in group for answer in set(map(normalised, each.references)))
    return counts.most_common(1)[0][0]
