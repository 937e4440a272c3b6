"""What adapters do alike: questions on one line, capitals for sentences, a wording drawn, media that are not read."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

TAG = "<image>"
"""Stands in the texts of several formats where a picture is shown."""

UNANSWERED = "an unanswered end left out"
"""What is said of conversations whose last question has no answer."""

_LINE_BREAK = re.compile(r"\s*[\n\r]\s*")
_END = r"[.?!\u2026]['\"\u201d\u2019)\]]*\s+"  # of a sentence: its mark, what closes, white space
_OPENING = r"['\"\u201c\u2018(\[\u00bf\u00a1]*"
_FIRST_WORD = re.compile(rf"(?P<end>^|{_END})(?P<opening>{_OPENING})(?P<word>[^\W\d_]\w*)")
_ABBREVIATION = re.compile(r"(?<!\w)(?:\w\.\w|al|approx|ca|cf|etc|vs)\.\s+$", re.IGNORECASE)
_LONGEST_ABBREVIATION = 12

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # of imagePath, which is image_path
_MEDIA_KEY = re.compile(r"(^|_)(image|img|pic|picture|photo|frame|video|audio)s?[0-9]*(_|$)", re.IGNORECASE)
_MEDIA_FILE = re.compile(
    r"\.(jpe?g|png|gif|webp|bmp|tiff?|avif|mp4|mkv|avi|mov|webm|mp3|wav|flac|ogg)$", re.IGNORECASE
)
_NO_MEDIA = ("id", "source")  # names of records, which may end as files do

_Option = TypeVar("_Option")


def one_line(text: str) -> str:
    """A question of a published set on one line: a line break becomes a space."""
    return _LINE_BREAK.sub(" ", text.strip())


def pick(options: Sequence[_Option], rng: np.random.Generator) -> _Option:
    """One of `options`, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def capitalized(text: str) -> str:
    """`text` with a capital as its first letter, and all others as they are."""
    first = text[:1].upper()
    return first + text[1:] if len(first) == 1 else text  # the capital of "ß" would be two letters


def capitalize_sentences(text: str) -> str:
    """Begin each sentence with a capital; everything else stays: NASA, iPhone, and what follows "e.g."."""

    def begin(match: re.Match[str]) -> str:
        end, opening, word = match.group("end", "opening", "word")
        before = max(0, match.start() - _LONGEST_ABBREVIATION)
        if _ABBREVIATION.search(text, before, match.end("end")) or word != word.lower():
            return match.group()
        return end + opening + capitalized(word)

    return _FIRST_WORD.sub(begin, text)


def as_sentence(text: str) -> str:
    """`text` as a sentence of its own: a capital first, and a full stop last where no mark is there."""
    text = capitalize_sentences(text.strip())
    return text if not text or text[-1] in ".?!\u2026\"'\u201d" else f"{text}."


def media_key(fields: Mapping[str, Any]) -> str | None:
    """The first key that seems to hold an image, a video or sound; None where there is none.

    For records that show no image otherwise: without it they would be learnt as text alone.
    """
    for key, value in fields.items():
        if not value or key in _NO_MEDIA:
            continue
        first = value[0] if isinstance(value, list) else value
        if _MEDIA_KEY.search(_HUMP.sub("_", str(key))) or (
            isinstance(first, str) and _MEDIA_FILE.search(first)
        ):
            return str(key)
    return None
