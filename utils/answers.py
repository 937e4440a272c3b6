"""When two answers are the same: exact match after the normalisation of the VQA evaluation (Antol et al. 2015)."""

import re
from collections.abc import Sequence

ARTICLES = frozenset({"a", "an", "the"})
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: str(value) for value, word in enumerate(_WORDS.split())}


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no articles, numbers up to twelve as digits.

    These are the steps of the VQA evaluation (Antol et al. 2015). Points and commas inside a number stay; a
    hyphen separates words. An answer of articles alone keeps them.
    """
    words = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,]", " ", answer.lower()).split()
    content = [word for word in words if word not in ARTICLES] or words
    return " ".join(NUMBERS.get(word, word) for word in content)


def is_correct(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer is the same as one of the references after `normalised`."""
    return normalised(answer) in map(normalised, references)
