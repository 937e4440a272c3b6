"""What was read of the last dialogues, so that the next round reads only what is new in it."""

from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from chat.generation.reading import Prompt, Reading
from chat.loaded_images import View


@dataclass(frozen=True, eq=False)
class _Entry:
    reading: Reading  # of one row
    dialogue: Prompt
    asked: int  # tokens of its last prompt; an answer follows


class PrefixCache:
    """Remembers readings of dialogues, and hands out what a new dialogue starts with as well.

    Tokens are the same where their ids are, images where their bytes are.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []  # the one used last is last

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def shrink(self, most: int) -> None:
        """Forget the dialogues that rest longest, above so many."""
        del self._entries[: max(len(self._entries) - max(most, 0), 0)]

    def take(self, dialogue: Prompt) -> Reading | None:
        """The longest start of a dialogue that has been read; None where there is none.

        At least one token is left to compute: the answer's first token comes from the last one's logits. The reading of
        a dialogue that goes on, or asks its last question again, leaves this place; of one that only starts alike a
        copy is handed out.
        """
        starts = [shared_start(entry.dialogue, dialogue) for entry in self._entries]
        tokens = max(starts, default=0)
        if not tokens:
            return None
        number = len(starts) - 1 - starts[::-1].index(tokens)
        entry = self._entries[number]
        if tokens >= entry.asked - 1:
            del self._entries[number]
            reading = entry.reading
        else:
            reading = entry.reading.rows([0])
        reading.cut(dialogue.is_image[:tokens])
        return reading

    def put(self, reading: Reading, dialogue: Prompt, asked: int) -> None:
        """Remember the `reading` of a dialogue, of which the last tokens may not be in it; a prompt of so many tokens
        was `asked`."""
        if covered := reading.covered(dialogue.is_image):
            self._entries.append(_Entry(reading, dialogue.until(covered), min(asked, covered)))


def shared_start(known: Prompt, other: Prompt) -> int:
    """How many tokens a known dialogue and another, but for its last token, start with alike; images count whole."""
    tokens = _common_length(known.ids, other.ids[:-1])
    if other.images:
        whole = sum(1 for _ in takewhile(_same, zip(known.images, other.images, strict=False)))
        places = np.flatnonzero(other.is_image)  # [n * tokens of an image]
        length = len(places) // len(other.images)
        whole = min(whole, int((places < tokens).sum()) // length)
        if whole < len(other.images):  # the first image that is another, or read in part, ends what is shared
            tokens = min(tokens, int(places[whole * length]))
    return tokens


def _same(pair: tuple[View, View]) -> bool:
    return pair[0] is pair[1] or pair[0].digest == pair[1].digest


def _common_length(left: np.ndarray, right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size
