"""What an answer is worth against its references: VQA accuracy and overlap of words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from utils.answers import normalised

FEWEST_ANNOTATORS = 3
"""VQA accuracy needs an answer on which this many people can agree."""


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
