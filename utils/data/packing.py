"""Packing: whole conversations side by side in rows of a fixed length, so that a batch holds next to no padding.

Rows are index maps made from lengths alone, before anything is read: a pure function of the lengths, the seed
and the epoch, the same in every process.
"""

from collections.abc import Sequence

import numpy as np

from utils.data.grouping import Grouping
from utils.data.spec import DataError

_WINDOW = 1 << 15
"""Conversations that are packed together: enough to fill rows, few enough to mix at random between epochs."""


def pack(
    tokens: np.ndarray, images: np.ndarray, max_tokens: int, max_images: int, rng: np.random.Generator
) -> Grouping:
    """Which of n conversations share which row: each in exactly one, no row over either budget.

    The conversations are shuffled and cut into windows. In each, the largest comes first, and goes where it
    leaves the least room for tokens (best fit decreasing); a new row begins where it fits nowhere.

    Args:
        tokens, images: [n], of each conversation. max_tokens, max_images: of a row.

    Raises `DataError` where a conversation alone is over a budget.
    """
    _check(tokens, max_tokens, "tokens", "--max_seq_len")
    _check(images, max_images, "images", "--max_images_per_row")
    order = rng.permutation(len(tokens))
    row_of = np.empty(len(tokens), dtype=np.int64)
    rows = 0
    for start in range(0, len(order), _WINDOW):
        window = order[start : start + _WINDOW]
        size = np.maximum(tokens[window] / max_tokens, images[window] / max_images)
        window = window[np.argsort(-size, kind="stable")]
        placed, used = _best_fit(tokens[window].tolist(), images[window].tolist(), max_tokens, max_images)
        row_of[window] = np.array(placed) + rows
        rows += used
    members = np.argsort(row_of, kind="stable")
    borders = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return Grouping(members, borders)


def _check(sizes: np.ndarray, limit: int, kind: str, option: str) -> None:
    if len(sizes) and sizes.max() > limit:
        raise DataError(
            f"conversation {int(sizes.argmax())} has {sizes.max()} {kind}, more than a row may hold; raise"
            f" {option} {limit}"
        )


def _best_fit(
    tokens: Sequence[int], images: Sequence[int], max_tokens: int, max_images: int
) -> tuple[list[int], int]:
    """The row of each conversation, placed one after the other, and the number of rows.

    Rows with the same room are on one stack. For each number of images that a row has left, bit t of `rooms`
    says whether there is a row with exactly t tokens left: so the tightest is the lowest bit that is high
    enough, found in a few operations on a long integer.
    """
    rooms = [0] * (max_images + 1)
    stacks: dict[tuple[int, int], list[int]] = {}
    placed, rows = [], 0
    for length, pictures in zip(tokens, images, strict=True):
        room, spare = max_tokens + 1, max_images
        for left in range(pictures, max_images + 1):
            fitting = rooms[left] >> length
            if fitting:
                tightest = length + (fitting & -fitting).bit_length() - 1
                if tightest < room:
                    room, spare = tightest, left
                    if tightest == length:
                        break
        if room > max_tokens:
            row, rows, room = rows, rows + 1, max_tokens
        else:
            stack = stacks[spare, room]
            row = stack.pop()
            if not stack:
                rooms[spare] ^= 1 << room
        placed.append(row)
        room, spare = room - length, spare - pictures
        if room:
            stack = stacks.setdefault((spare, room), [])
            if not stack:
                rooms[spare] |= 1 << room
            stack.append(row)
    return placed, rows
