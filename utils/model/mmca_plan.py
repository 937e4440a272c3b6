"""Multi-modal causal attention cut into rectangles that a kernel without masks computes.

Of the text, each conversation is a triangle. Unless it is long, it is cut into small triangles along its
diagonal and rectangles below them: a kernel that works through a triangle in blocks computes what stands above
the diagonal of a block too.
Of the images, the text between two images sees a whole number of them: rectangles again. Where such runs of
text are short, several share the images that all of them see, because a kernel is slow with few rows. A row
that several rectangles touch takes its softmax together from theirs (`mmca_pieces`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

TRIANGLE = 256
"""Rows of a triangle that is not cut further; measured on CPUs, where the kernel's blocks have 512 keys."""

LONG = 4096
"""Rows of a triangle that is not cut at all: beside so many pairs, those above the diagonal in a block are few."""

GROUP = 256
"""Runs of text that are shorter together share a rectangle; a CPU's kernel takes up to 256 rows at a time."""


@dataclass(frozen=True, eq=False)
class Band:
    """Which keys each of T queries sees: those from start [T] up to, without, stop [T]. Both never decrease."""

    start: torch.Tensor
    stop: torch.Tensor

    def to(self, device: torch.device) -> "Band":
        return Band(self.start.to(device), self.stop.to(device))


class Piece(NamedTuple):
    """Queries [top, bottom) over keys [left, right) of one softmax.

    causal: a square, of which each row sees the columns up to its own. first: the first to touch its rows.
    """

    top: int
    bottom: int
    left: int
    right: int
    causal: bool
    first: bool

    @property
    def pairs(self) -> int:
        """How many scores a kernel computes."""
        return (self.bottom - self.top) * (self.right - self.left)


class Alike(NamedTuple):
    """`count` pieces of one size, each `down` rows below the last and `across` keys further: one call of a kernel."""

    piece: Piece
    count: int = 1
    down: int = 0
    across: int = 0


class Run(NamedTuple):
    """Text between images, or a conversation's last: rows [top, bottom) of the text queries.

    place: where the first of them stands among the B * Q queries; the others follow it there. The borders are
    those of the first row (see `mmca_layout.Band`).
    """

    top: int
    bottom: int
    place: int
    text_left: int
    text_right: int
    image_left: int
    image_right: int


@dataclass(frozen=True)
class Plan:
    """The pieces of both softmaxes, and the runs of text that they are made for."""

    text: tuple[Piece, ...]
    image: tuple[Piece, ...]
    runs: tuple[Run, ...]

    @cached_property
    def image_top(self) -> int:
        """The first row that sees an image; the softmax over images is computed from there on."""
        return min((piece.top for piece in self.image), default=0)

    @cached_property
    def text_calls(self) -> tuple[Alike, ...]:
        """The pieces over text, as few calls as they make."""
        return _alike(self.text)

    @cached_property
    def image_calls(self) -> tuple[Alike, ...]:
        """The pieces over images, with rows counted from `image_top`."""
        top = self.image_top
        return _alike(piece._replace(top=piece.top - top, bottom=piece.bottom - top) for piece in self.image)

    def text_whole(self, keys: int) -> bool:
        """Whether the pieces that come first have each of so many keys of text once."""
        return sum(piece.right - piece.left for piece in self.text if piece.first) == keys

    @cached_property
    def placed(self) -> tuple[Alike, ...]:
        """Where results go: rows of text [top, bottom) to queries [left, right); `first` where they see an image."""
        return _alike(
            Piece(
                run.top,
                run.bottom,
                run.place,
                run.place + run.bottom - run.top,
                causal=False,
                first=run.image_right > run.image_left,
            )
            for run in self.runs
        )

    @property
    def pairs(self) -> int:
        """How many scores are computed."""
        return sum(piece.pairs for piece in self.text + self.image)


def make_plan(rows: torch.Tensor, text_band: Band, image_band: Band) -> Plan:
    """Pieces for text rows [T] and what they see; the only loop is over runs of text between images."""
    runs = _runs(rows, text_band, image_band)
    text: list[Piece] = []
    image: list[Piece] = []
    for conversation in _conversations(runs):
        top, bottom, left = conversation[0].top, conversation[-1].bottom, conversation[0].text_right - 1
        _triangle(text, top, bottom, left)
        if left > conversation[0].text_left:  # keys of earlier forwards
            text.append(Piece(top, bottom, conversation[0].text_left, left, causal=False, first=False))
        conversation = [run for run in conversation if run.image_right > run.image_left]
        if conversation:
            _staircase(image, conversation, conversation[0].image_left, first=True)
    return Plan(tuple(text), tuple(image), tuple(runs))


def _alike(pieces: Iterable[Piece]) -> tuple[Alike, ...]:
    """Rows of a batch that are built alike give pieces at equal distances. What touches rows first comes first."""
    calls: list[Alike] = []
    latest: dict[tuple[int, int, bool, bool], int] = {}  # by size: which call may take in one more
    for piece in sorted(pieces, key=lambda piece: not piece.first):
        rows, keys = piece.bottom - piece.top, piece.right - piece.left
        size = rows, keys, piece.causal, piece.first
        if size in latest:
            call = calls[latest[size]]
            distance = (
                piece.top - call.piece.top - (call.count - 1) * call.down,
                piece.left - call.piece.left - (call.count - 1) * call.across,
            )
            apart = (
                distance[0] >= rows and distance[1] >= keys
            )  # gradients of the same key cannot be put side by side
            if (apart and call.count == 1) or distance == (call.down, call.across):
                calls[latest[size]] = Alike(call.piece, call.count + 1, *distance)
                continue
        latest[size] = len(calls)
        calls.append(Alike(piece))
    return tuple(calls)


def _runs(rows: torch.Tensor, text: Band, image: Band) -> list[Run]:
    if rows.numel() == 0:
        return []
    borders = torch.stack([rows, text.start, text.stop, image.start, image.stop])
    steps = borders.diff(dim=1)  # [5, T - 1]
    steps[[0, 2]] -= 1  # within a run each row stands one further than the row before, and sees one more
    tops = torch.cat([torch.zeros_like(rows[:1]), (steps != 0).any(dim=0).nonzero()[:, 0] + 1])
    values = torch.cat([tops[None], borders[:, tops]]).T.tolist()
    bottoms = [*(value[0] for value in values[1:]), rows.numel()]
    return [Run(value[0], bottom, *value[1:]) for value, bottom in zip(values, bottoms, strict=True)]


def _conversations(runs: list[Run]) -> list[list[Run]]:
    """The runs of each conversation: the text of one goes on where that of the one before ended."""
    groups: list[list[Run]] = []
    for run in runs:
        last = groups[-1][-1] if groups else None
        same = last is not None and last.text_left == run.text_left
        if same and run.text_right == last.text_right + last.bottom - last.top:
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def _triangle(pieces: list[Piece], top: int, bottom: int, left: int) -> None:
    """Rows [top, bottom) over as many keys from `left`: the diagonal first, so that it touches all rows."""
    rows = bottom - top
    if rows <= TRIANGLE or rows >= LONG:
        pieces.append(Piece(top, bottom, left, left + rows, causal=rows > 1, first=True))
        return
    upper = -(-rows // 2)
    _triangle(pieces, top, top + upper, left)
    _triangle(pieces, top + upper, bottom, left + upper)
    pieces.append(Piece(top + upper, bottom, left, left + upper, causal=False, first=False))


def _staircase(pieces: list[Piece], runs: list[Run], left: int, first: bool) -> None:
    """Runs over the images that each sees, those before key `left` aside, which are done."""
    if runs[-1].bottom - runs[0].top <= GROUP or len(runs) == 1:
        right = runs[0].image_right
        if right > left:
            pieces.append(Piece(runs[0].top, runs[-1].bottom, left, right, causal=False, first=first))
            first = False
        left = max(left, right)
        if len(runs) == 1:
            return
    middle = len(runs) // 2
    _staircase(pieces, runs[:middle], left, first)
    _staircase(pieces, runs[middle:], left, first)
