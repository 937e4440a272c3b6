"""Scores of a checkpoint on a set: overall, by kind of question and by number of images, with confidence intervals."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from utils.answers import is_correct, normalised

WORDS_OF_A_SENTENCE = 5
"""Where a reference has so many words or more, the overlap of words is told beside exact match."""

FEWEST_ANNOTATORS = 3
"""VQA accuracy needs an answer on which this many people can agree."""

Key = TypeVar("Key", str, int)

_Z = 1.959964  # of the normal distribution's 95 %


def vqa_accuracy(answer: str, references: Sequence[str]) -> float | None:
    """VQA accuracy: min(1, people who said so / 3), the mean over all sets that leave one of them out.

    As the VQA evaluation has it (Antol et al. 2015), which asked ten people; None for fewer than three.
    """
    if len(references) < FEWEST_ANNOTATORS:
        return None
    given = normalised(answer)
    agree = [normalised(reference) == given for reference in references]
    return sum(min(1.0, (sum(agree) - left_out) / 3) for left_out in agree) / len(agree)


@dataclass(frozen=True)
class WordOverlap:
    """How much answers share with their references, as COCO's caption evaluation has it (Chen et al. 2015).

    `bleu` is BLEU-4 over all answers, from 0 to 1; `rouge_l` the mean ROUGE-L, from 0 to 1; `cider` the mean
    CIDEr-D, from 0 to 10, whose rarities of words come from these references: few answers make it mean little.
    Words are those of `words`, instead of the Stanford tokenizer's, which needs Java.
    """

    bleu: float
    rouge_l: float
    cider: float


def word_overlap(answers: Sequence[str], references: Sequence[Sequence[str]]) -> WordOverlap:
    """BLEU-4, ROUGE-L and CIDEr-D of one or more answers, each with one or more references."""
    given = {number: [words(answer)] for number, answer in enumerate(answers)}
    wanted = {number: [words(each) for each in several] for number, several in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(wanted, given, verbose=0)
    rouge_l, _ = Rouge().compute_score(wanted, given)
    cider, _ = Cider().compute_score(wanted, given)
    return WordOverlap(float(bleu[3]), float(rouge_l), float(cider))


def words(text: str) -> str:
    """A text in lower case, its words separated by single spaces, without punctuation."""
    return " ".join(re.findall(r"\w+(?:[.,'\u2019]\w+)*", text.lower()))


@dataclass(frozen=True)
class Row:
    """A question with the model's answer; None where the dialogue had grown too long to ask it.

    `image_path` is as the set writes it, `images` the files of this turn's new images (a data URL of one that the set
    holds itself); `images_so_far` counts those of the dialogue up to here. `judged` is the mark that `eval.judge`
    gave, from 1 to 10.
    """

    test_name: str
    image_path: str
    question: str
    answer: str | None
    references: tuple[str, ...] = ()
    kind: str = ""
    images: tuple[str, ...] = ()
    images_so_far: int = 0
    judged: float | None = None

    @property
    def correct(self) -> bool | None:
        """Whether the answer matches a reference; None without one."""
        return is_correct(self.answer or "", self.references) if self.references else None


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


def scores_of(rows: Iterable[Row]) -> Scores | None:
    """Scores over the rows with a reference; None where there is none."""
    rows = [row for row in rows if row.references]
    if not rows:
        return None
    return Scores(
        _score(rows),
        {kind: _score(group) for kind, group in _groups(rows, lambda row: row.kind).items()},
        {number: _score(group) for number, group in _groups(rows, lambda row: row.images_so_far).items()},
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


def _groups(rows: Sequence[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return dict(sorted(groups.items()))


def _score(group: Sequence[Row]) -> Score:
    right = [bool(row.correct) for row in group]
    commonest = {kind: _commonest(asked) for kind, asked in _groups(group, lambda row: row.kind).items()}
    vqa = [value for row in group if (value := vqa_accuracy(row.answer or "", row.references)) is not None]
    sentences = [
        row for row in group if max(len(each.split()) for each in row.references) >= WORDS_OF_A_SENTENCE
    ]
    overlap = None
    if sentences:
        overlap = word_overlap([row.answer or "" for row in sentences], [row.references for row in sentences])
    return Score(
        count=len(group),
        correct=sum(right),
        majority=sum(is_correct(commonest[row.kind], row.references) for row in group),
        majority_answer=next(iter(commonest.values())) if len(commonest) == 1 else None,
        interval=accuracy_interval(right, [row.test_name for row in group]),
        vqa=sum(vqa) / len(vqa) if vqa else None,
        overlap=overlap,
    )


def _commonest(group: Sequence[Row]) -> str:
    """The answer that is right most often."""
    counts = Counter(answer for row in group for answer in set(map(normalised, row.references)))
    return counts.most_common(1)[0][0]
