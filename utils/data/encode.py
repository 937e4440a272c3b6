"""Conversations to token ids, labels and pixels, within a maximal length."""

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from utils.conversation import Conversation, Image, ImageError

IGNORED_LABEL = -100
"""The label of a token that is not learned: the `ignore_index` of torch's cross entropy."""

_MAX_WORKERS = 256


class Encoded(Protocol):
    """A conversation as the model takes it; see the processor's `EncodedConversation`, a dataclass."""

    input_ids: np.ndarray  # [S]
    labels: np.ndarray  # [S], negative where nothing is learned
    mm_token_type_ids: np.ndarray  # [S]
    turn_ends: np.ndarray  # [turns]
    pixel_values: torch.Tensor | None  # [images, 3, H, W], or the encoder's features of them [images, S, D]


class PictureFeatures(Protocol):
    """Features of pictures, computed earlier; see `picture_features.FeatureStore`."""

    def of(self, images: Sequence[Image]) -> torch.Tensor: ...


class ConversationEncoder(Protocol):
    """What is asked of the processor, which is handed in: data does not know the model."""

    image_seq_length: int

    @property
    def text_fingerprint(self) -> str: ...

    def encode(self, conversation: Conversation, load_images: bool = True) -> Encoded: ...

    def pixel_values(self, images: Sequence[Image]) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class CutCount:
    """What `max_seq_len` took away so far: conversations that lost turns, and the turns."""

    conversations: int
    turns: int


class EncodedDataset(Dataset):
    """Conversations encoded one at a time, in the loader's workers; none is longer than `max_seq_len` tokens.

    A conversation that is too long loses whole turns from its end, never a part of an answer or of an image.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: ConversationEncoder,
        max_seq_len: int,
        load_images: bool = True,
        features: PictureFeatures | None = None,
    ) -> None:
        """`load_images` False leaves the pixels out: no image is read, and nothing counted as cut.

        `features`: read in the place of pixels; then no picture is decoded.
        """
        self.conversations = conversations
        self.processor = processor
        self.max_seq_len = max_seq_len
        self.load_images = load_images
        self.features = features
        # A row for this process and for each worker: they count without waiting for each other.
        self._cut = torch.zeros(_MAX_WORKERS + 1, 2, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Encoded:
        """See `encode`."""
        return self.encode(self.conversations[index])

    def encode(self, conversation: Conversation, count_cut: bool = True) -> Encoded:
        """What of a conversation fits. Raises `ConversationError` and `ImageError` that name the record."""
        encoded = self.encode_text(conversation)
        if not self.load_images:
            return encoded
        turns = len(encoded.turn_ends)
        images = [image for turn in conversation.turns[:turns] for image in turn.images]
        try:
            if self.features is None:
                pixels = self.processor.pixel_values(images)
            else:
                pixels = self.features.of(images) if images else None
        except ImageError as error:
            raise ImageError(f"{conversation.source}: {error}") from error
        if count_cut:
            self._count(len(conversation.turns) - turns)
        return replace(encoded, pixel_values=pixels)

    def encode_text(self, conversation: Conversation) -> Encoded:
        """The same without pixels: no image is read. Raises `ConversationError` that names the record.

        So for a conversation with no answer, or whose first turn alone is too long: both would teach nothing.
        """
        encoded = self.processor.encode(conversation, load_images=False)
        turns = int((encoded.turn_ends <= self.max_seq_len).sum())
        if turns == 0:
            raise conversation.error(
                f"its first turn takes {encoded.turn_ends[0]} tokens, more than --max_seq_len {self.max_seq_len}"
                " (at most the decoder's positions); raise it, or remove the record"
            )
        end = encoded.turn_ends[turns - 1]
        labels = encoded.labels[:end]
        if (labels < 0).all():
            raise conversation.error("it has no answer to learn from; take the record out")
        return replace(
            encoded,
            input_ids=encoded.input_ids[:end],
            labels=labels,
            mm_token_type_ids=encoded.mm_token_type_ids[:end],
            turn_ends=encoded.turn_ends[:turns],
        )

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to conversations that are joined anew in each."""
        if hasattr(self.conversations, "set_epoch"):
            self.conversations.set_epoch(epoch)

    def sketch(self, epoch: int) -> "EncodedDataset":
        """The conversations of an epoch without their pixels, to measure; this dataset's epoch stays."""
        conversations = copy(self.conversations)
        if hasattr(conversations, "set_epoch"):
            conversations.set_epoch(epoch)
        return EncodedDataset(conversations, self.processor, self.max_seq_len, load_images=False)

    @property
    def fingerprint(self) -> str | None:
        """The same where the token ids of all conversations are; None where the conversations have none."""
        conversations = getattr(self.conversations, "fingerprint", None)
        if conversations is None:
            return None
        parts = (conversations, self.processor.text_fingerprint, str(self.max_seq_len))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def cut(self) -> CutCount:
        """What was cut so far, in this process and in its loader's workers."""
        conversations, turns = self._cut.sum(dim=0).tolist()
        return CutCount(conversations, turns)

    def _count(self, cut_turns: int) -> None:
        if cut_turns:
            worker = get_worker_info()
            self._cut[worker.id + 1 if worker else 0] += torch.tensor([1, cut_turns])
