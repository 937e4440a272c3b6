"""Rows of text and images to measure attention on."""

from dataclasses import dataclass

import torch

from utils.model.mmca_layout import Layout, build_layout

IMAGE = 256
"""Tokens of an image."""


@dataclass(frozen=True)
class Rows:
    """B rows of conversations, each a list of spans: (tokens, whether they are images).

    Rows are filled up on the right to the longest; conversations of a row are packed, and see only themselves.
    """

    name: str
    rows: tuple[tuple[tuple[tuple[int, bool], ...], ...], ...]

    @property
    def kinds(self) -> torch.Tensor:
        """[B, S], 1 for image tokens."""
        return self._filled([[int(image) for _, image in self._spans(row)] for row in self.rows])

    @property
    def valid(self) -> torch.Tensor | None:
        """[B, S], False for padding; None where there is none."""
        valid = self._filled([[1 for _ in self._spans(row)] for row in self.rows]).bool()
        return None if valid.all() else valid

    @property
    def conversations(self) -> torch.Tensor:
        """[B, S]: the number of each token's conversation in its row."""
        numbers = [[n for n, spans in enumerate(row) for _ in spans] for row in self.rows]
        return self._filled(numbers)

    def layout(self, device: str) -> Layout:
        """Who sees whom."""
        kinds = self.kinds.to(device)
        numbers, valid = self.conversations.to(device), self.valid
        begins = None
        if any(len(row) > 1 for row in self.rows):
            begins = torch.nn.functional.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0))
        return build_layout(kinds, kinds.shape[1], None if valid is None else valid.to(device), begins)

    def visible(self, device: str) -> torch.Tensor:
        """The decoder's mask, bool [B, 1, S, S]."""
        numbers = self.conversations.to(device)
        seen = (numbers[:, :, None] == numbers[:, None]).tril()
        if self.valid is not None:
            seen &= self.valid.to(device)[:, None]
        return seen[:, None]

    @staticmethod
    def _spans(row) -> list[tuple[int, bool]]:
        return [span for conversation in row for span in conversation]

    def _filled(self, values: list[list[int]]) -> torch.Tensor:
        rows = []
        for row, numbers in zip(self.rows, values, strict=True):
            tokens = torch.tensor([length for length, _ in self._spans(row)])
            rows.append(torch.tensor(numbers).repeat_interleave(tokens))
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def between(text: int, images: int, size: int = IMAGE) -> tuple[tuple[int, bool], ...]:
    """One conversation: images spread evenly through the text, which begins and ends it."""
    step = text // (images + 1)
    spans = [span for _ in range(images) for span in ((step, False), (size, True))]
    return (*spans, (text - step * images, False))


def mixture(text: int, images: int) -> Rows:
    """A single row with one conversation, `text` + `images`."""
    return Rows(f"{text} + {images}", ((between(text, images),),))


def many_layouts() -> list[Rows]:
    """Layouts of many kinds, to see that none is slower than causal attention."""
    question = ((40, False),)
    together = [(8, False), (IMAGE, True)] * 8
    return [
        mixture(1024, 0),
        mixture(4096, 0),
        mixture(32, 1),
        mixture(256, 1),
        mixture(1024, 1),
        mixture(4096, 1),
        mixture(2048, 8),
        mixture(128, 16),
        Rows("image first, 1024 text", (((((IMAGE, True), (1024, False))),),)),
        Rows("image last, 1024 text", (((((1024, False), (IMAGE, True), (16, False))),),)),
        Rows("8 images together, 300 text", (((*together, (300, False)),),)),
        Rows("30 images of 17, 400 text", ((between(400, 30, 17),),)),
        Rows("packed: 4 of 300 + 1", (tuple(between(300, 1) for _ in range(4)),)),
        Rows("packed: 8 of 60 + 1, 4 questions", ((*(between(60, 1) for _ in range(8)), *[question] * 4),)),
        Rows("batch of 4: 300 + 2", tuple((between(300, 2),) for _ in range(4))),
        Rows("batch of 4, padded", tuple((between(length, 1),) for length in (100, 300, 700, 1000))),
        Rows("batch of 16: 48 + 1 of 17", tuple((between(48, 1, 17),) for _ in range(16))),
        Rows("batch of 16: 48 + 3 of 17", tuple((between(48, 3, 17),) for _ in range(16))),
    ]
