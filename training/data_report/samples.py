"""Conversations as the model is taught them: token by token, what is learned and what is an image."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from transformers import ProcessorMixin

from utils.conversation import Conversation, Image, join
from utils.data import DataError, EncodedDataset, PackedDataset

_THUMBNAIL = 320  # pixels of the longer side
_QUALITY = 80
_LOOKED_AT = 20_000  # rows at most, to find some of every dataset


@dataclass(frozen=True)
class Picture:
    """A picture as it is shown: a small copy as a data URL, its size, and its number in the conversation."""

    number: int
    name: str
    width: int
    height: int
    url: str


@dataclass(frozen=True)
class Piece:
    """A token's text (or that of several which only together make characters), or the tokens of one image."""

    text: str
    ids: tuple[int, ...]
    is_learned: bool = False
    is_special: bool = False
    is_cut: bool = False
    picture: Picture | None = None

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Sample:
    """One conversation, piece by piece, and the places of its records."""

    dataset: str
    sources: tuple[str, ...]
    pieces: tuple[Piece, ...]
    conversation: Conversation
    turns: int  # that are not cut
    cut_turns: int

    @property
    def tokens(self) -> int:
        """All that are trained on, image tokens included."""
        return sum(piece.tokens for piece in self.pieces if not piece.is_cut)

    @property
    def text(self) -> str:
        """As the template renders it."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def learned(self) -> int:
        return sum(piece.tokens for piece in self.pieces if piece.is_learned and not piece.is_cut)

    @property
    def images(self) -> int:
        return sum(piece.picture is not None and not piece.is_cut for piece in self.pieces)


@dataclass(frozen=True)
class SampledRow:
    """What is trained on side by side: one conversation, or those of a packed row (of `max_tokens`)."""

    samples: tuple[Sample, ...]
    max_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return sum(sample.tokens for sample in self.samples)

    @property
    def learned(self) -> int:
        return sum(sample.learned for sample in self.samples)

    @property
    def images(self) -> int:
        return sum(sample.images for sample in self.samples)


def draw_samples(rows: EncodedDataset | PackedDataset, count: int, seed: int) -> list[SampledRow]:
    """Rows with at least `count` conversations, the same for the same seed; fewer where there are no more.

    Conversations in which something is bad are passed over: the list of bad records tells of them. Without
    packing the datasets come in turn, so that a small one is seen beside a large one.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))[:_LOOKED_AT].tolist()
    if isinstance(rows, PackedDataset):
        return _packed_rows(rows, order, count)
    return _conversations(rows, order, count)


def _packed_rows(rows: PackedDataset, order: list[int], count: int) -> list[SampledRow]:
    drawn: list[SampledRow] = []
    for row in order:
        if sum(len(each.samples) for each in drawn) >= count:
            break
        samples = (_sample(rows.conversations, index) for index in rows.members(row))
        sound = tuple(sample for sample in samples if sample is not None)
        if sound:
            drawn.append(SampledRow(sound, rows.max_tokens))
    return drawn


def _conversations(encoded: EncodedDataset, order: list[int], count: int) -> list[SampledRow]:
    waiting: dict[str, list[int]] = {}
    conversations: Any = encoded.conversations  # a mixture
    for index in order:
        waiting.setdefault(conversations.records_of(index)[0].place.dataset, []).append(index)
    drawn: dict[str, list[SampledRow]] = {name: [] for name in sorted(waiting)}
    missing = count
    while missing and any(waiting.values()):
        for name, rows in drawn.items():
            while missing and waiting[name]:
                sample = _sample(encoded, waiting[name].pop(0))
                if sample is not None:
                    rows.append(SampledRow((sample,)))
                    missing -= 1
                    break
    return [row for rows in drawn.values() for row in rows]


def _sample(encoded: EncodedDataset, index: int) -> Sample | None:
    """None where something in the conversation is bad: the list of bad records tells of it."""
    conversations: Any = encoded.conversations  # a mixture
    members = conversations.records_of(index)
    try:
        conversation = join([member.read() for member in members])
        pieces = _pieces(encoded, conversation)
    except DataError:
        raise
    except ValueError:
        return None
    kept = len(encoded.encode_text(conversation).turn_ends)
    return Sample(
        members[0].place.dataset,
        tuple(str(member.place) for member in members),
        tuple(pieces),
        conversation,
        kept,
        len(conversation.turns) - kept,
    )


def _pieces(encoded: EncodedDataset, conversation: Conversation) -> list[Piece]:
    processor: Any = encoded.processor
    whole = processor.encode(conversation, load_images=False)
    kept = len(encoded.encode_text(conversation).input_ids)
    text, spans = _text_and_spans(processor, conversation)
    special = {*processor.tokenizer.all_special_ids}
    pictures = [
        _picture(number, view)
        for number, image in enumerate(conversation.images, start=1)
        for view in processor.views([image])
    ]

    pieces: list[Piece] = []
    of_image = processor.image_seq_length + (processor.image_summary_token_id is not None)
    position = shown = 0  # in the ids, where an image takes many; among the pictures
    for first, last, count in spans:
        is_image = bool(whole.mm_token_type_ids[position])
        width = of_image if is_image else count
        ids = tuple(whole.input_ids[position : position + width].tolist())
        pieces.append(
            Piece(
                text[first:last],
                ids,
                is_learned=bool(whole.labels[position] >= 0),
                is_special=ids[0] in special,
                is_cut=position >= kept,
                picture=pictures[shown] if is_image else None,
            )
        )
        position += width
        shown += is_image
    assert position == len(whole.input_ids)
    return pieces


def _text_and_spans(
    processor: ProcessorMixin, conversation: Conversation
) -> tuple[str, list[tuple[int, int, int]]]:
    """The rendered text, and for each piece of it the first character, the last + 1, and how many tokens it is.

    A piece reaches to the next one, so that no space is lost where a tokenizer's offsets leave it out. Tokens
    that start at the same character (the bytes of one, mostly) are one piece.
    """
    text = processor.apply_chat_template(conversation.messages(load_images=False), tokenize=False)
    text = processor.marked(text, conversation.images)
    encoding = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, _ in encoding["offset_mapping"]]
    borders = [number for number, start in enumerate(starts) if number == 0 or start != starts[number - 1]]
    firsts = [starts[number] for number in borders]
    counts = np.diff([*borders, len(starts)]).tolist()
    return text, list(zip([0, *firsts[1:]], [*firsts[1:], len(text)], counts, strict=True))


def _picture(number: int, image: Image) -> Picture:
    opened = image.open()
    width, height = opened.size
    opened.thumbnail((_THUMBNAIL, _THUMBNAIL), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    opened.save(buffer, "JPEG", quality=_QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(number, image.name, width, height, url)
