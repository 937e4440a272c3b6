"""Scores of answers against references: exact match after normalisation, overall and per kind of question."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
}


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no articles, numbers up to twelve as digits.

    These are the steps of the VQA evaluation (Antol et al. 2015). Points and commas inside a number stay; a
    hyphen separates words. An answer of articles alone keeps them.
    """
    words = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,]", " ", answer.lower()).split()
    content = [word for word in words if word not in ARTICLES] or words
    return " ".join(NUMBERS.get(word, word) for word in content)


def is_correct(answer: str, reference: str) -> bool:
    """Whether the two are the same after `normalised`."""
    return normalised(answer) == normalised(reference)


@dataclass(frozen=True)
class Scored:
    """An answer to a question of some kind, and what it should have been."""

    answer: str
    reference: str
    kind: str = ""


@dataclass(frozen=True)
class Score:
    """Of `count` answers `correct` were right; giving always the commonest reference would make `majority`
    right.
    """

    count: int
    correct: int
    majority: int
    majority_answer: str | None

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def majority_accuracy(self) -> float:
        return self.majority / self.count


@dataclass(frozen=True)
class Scores:
    """`overall`, and by kind of question in alphabetical order.

    The overall majority gives each kind its own commonest answer, which is harder to beat than one answer for
    all; its `majority_answer` is None where there are several kinds.
    """

    overall: Score
    kinds: dict[str, Score]


def scores_of(answers: Iterable[Scored]) -> Scores | None:
    """Exact-match scores; None where there is nothing to score."""
    by_kind: dict[str, list[Scored]] = {}
    for scored in answers:
        by_kind.setdefault(scored.kind, []).append(scored)
    if not by_kind:
        return None
    kinds = {kind: _score(group) for kind, group in sorted(by_kind.items())}
    answers_of_majority = [score.majority_answer for score in kinds.values()]
    overall = Score(
        count=sum(score.count for score in kinds.values()),
        correct=sum(score.correct for score in kinds.values()),
        majority=sum(score.majority for score in kinds.values()),
        majority_answer=answers_of_majority[0] if len(kinds) == 1 else None,
    )
    return Scores(overall, kinds)


def _score(group: Sequence[Scored]) -> Score:
    majority_answer, majority = Counter(normalised(scored.reference) for scored in group).most_common(1)[0]
    correct = sum(is_correct(scored.answer, scored.reference) for scored in group)
    return Score(len(group), correct, majority, majority_answer)
