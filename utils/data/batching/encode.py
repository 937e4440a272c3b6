"""Conversations to token ids, labels and pixels, within a maximal length."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from utils.conversation import Conversation, ConversationError, Image, ImageError, Turn, join
from utils.data.bad_records import BadRecord, RecordPlace, SourceRecord
from utils.data.batching.batch import IGNORED_LABEL, Sample
from utils.data.mixing.mixture import Mixture
from utils.data.spec import DataError
from utils.data.workers import parallel_map

_MAX_WORKERS = 256
_FEW = 8  # tokens
_SOME = 100  # conversations


class ImageFeatures(Protocol):
    """Features of images, computed earlier; see `picture_features.FeatureStore`."""

    def of(self, images: Sequence[Any]) -> torch.Tensor: ...


class ConversationEncoder(Protocol):
    """What is asked of the processor, which is handed in: data does not know the model."""

    image_seq_length: int
    tiles: int

    @property
    def text_fingerprint(self) -> str: ...

    def encode(self, conversation: Conversation, load_images: bool = True) -> Mapping[str, Any]: ...

    def views(self, images: Sequence[Image]) -> Sequence[Any]: ...

    def pixel_values(self, images: Sequence[Any]) -> torch.Tensor | None: ...


@dataclass(frozen=True)
class CutCount:
    """What `max_seq_len` took away so far: conversations that lost turns, and the turns."""

    conversations: int
    turns: int


class EncodedDataset(Dataset):
    """Conversations encoded one at a time, in the loader's workers; none is longer than `max_seq_len` tokens.

    A conversation that is too long loses whole turns from its end, never a part of an answer or of an image.

    `on_bad` "skip" is for a mixture, and for training: ranks have to stay in step under ZeRO-3, and no record may
    stand in for another. So a conversation keeps its place whatever is wrong with it: what is sound in it is learned,
    where nothing is a few tokens without labels are (`empty_sample`), and `Sample.bad` names the bad records.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: ConversationEncoder,
        max_seq_len: int,
        load_images: bool = True,
        features: ImageFeatures | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
    ) -> None:
        """`load_images` False leaves the pixels out: no image is read, and nothing counted as cut.

        `features`: read in the place of pixels; then no image is decoded.
        """
        assert on_bad == "raise" or isinstance(conversations, Mixture), (
            "only a mixture knows its records one by one"
        )
        self.conversations = conversations
        self.processor = processor
        self.max_seq_len = max_seq_len
        self.load_images = load_images
        self.features = features
        self.on_bad = on_bad
        # A row for this process and for each worker: they count without waiting for each other.
        self._cut = torch.zeros(_MAX_WORKERS + 1, 2, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Sample:
        """Raises `DataError` where the data cannot be read at all (a cache that is gone); see `encode` for the rest,
        which is not raised where `on_bad` is "skip".
        """
        conversations = self.conversations
        if self.on_bad == "raise" or not isinstance(conversations, Mixture):
            return self.encode(conversations[index])
        try:
            return self.encode(conversations[index], conversations.places_of(index))
        except DataError:
            raise
        except ValueError as error:  # ConversationError, ImageError, and the processor's about a text
            return self._without_bad(conversations.records_of(index), error)

    def encode(
        self, conversation: Conversation, places: Sequence[RecordPlace] = (), count_cut: bool = True
    ) -> Sample:
        """What of a conversation, made of the records at `places`, fits.

        Raises `ConversationError` and `ImageError` that name the record.
        """
        sample = self.encode_text(conversation).of(places)
        if not self.load_images:
            return sample
        turns = len(sample.turn_ends)
        images = [image for turn in conversation.turns[:turns] for image in turn.images]
        with _naming(conversation):
            sample = self._with_images(sample, images)
        if count_cut:
            self._count(len(conversation.turns) - turns)
        return sample

    def encode_text(self, conversation: Conversation) -> Sample:
        """The same without pixels: no image is read, but its size where it has tiles. Raises what `encode` does.

        `ConversationError` for a conversation with no answer, or whose first turn alone is too long: both would teach
        nothing.
        """
        with _naming(conversation):
            whole = Sample(**self.processor.encode(conversation, load_images=False))
        turns = int((whole.turn_ends <= self.max_seq_len).sum())
        if turns == 0:
            raise conversation.error(
                f"its first turn takes {whole.turn_ends[0]} tokens, more than --max_seq_len {self.max_seq_len}"
                " (at most the decoder's positions); raise it, or remove the record"
            )
        sample = whole.first_turns(turns, self.tokens_per_image)
        if (sample.labels < 0).all():
            raise conversation.error("it has no answer to learn from; take the record out")
        return sample

    @cached_property
    def empty_sample(self) -> Sample:
        """A few tokens of which nothing is learned."""
        conversation = Conversation((Turn("-", "-"),), source="nothing to learn")
        encoded = self.processor.encode(conversation, load_images=False)
        ids, kinds = encoded["input_ids"][:_FEW], encoded["mm_token_type_ids"][:_FEW]
        return self._with_images(
            Sample(ids, np.full_like(ids, IGNORED_LABEL), kinds, np.array([len(ids)])), []
        )

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to conversations that are joined anew in each."""
        if isinstance(self.conversations, Mixture):
            self.conversations.set_epoch(epoch)

    def without_pixels(self, epoch: int) -> "EncodedDataset":
        """The samples of an epoch, to measure: without images, and with those bad records that texts give away.

        This dataset's epoch stays.
        """
        conversations = copy(self.conversations)
        dataset = EncodedDataset(conversations, self.processor, self.max_seq_len, False, on_bad=self.on_bad)
        dataset.set_epoch(epoch)
        dataset._image_sizes = self._image_sizes  # those of all epochs
        return dataset

    @property
    def fingerprint(self) -> str | None:
        """The same where the token ids of all samples are; None where they are of no mixture."""
        if not isinstance(self.conversations, Mixture):
            return None
        parts = [self.conversations.fingerprint, self.processor.text_fingerprint, str(self.max_seq_len)]
        parts += [self._image_sizes] if self._image_sizes else []
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @cached_property
    def _image_sizes(self) -> str:
        """A digest of the images' sizes where tiles depend on them; "" where there are none, and no image is read."""
        if self.processor.tiles == 1 or not isinstance(self.conversations, Mixture):
            return ""
        digest = hashlib.sha256()
        read: Iterator[list[tuple[int, int]] | None] = parallel_map(
            _ImageSizes(self.conversations), "reading the sizes of images"
        )
        for sizes in read:
            digest.update(f"{sizes} ".encode())
        return digest.hexdigest()

    @property
    def tokens_per_image(self) -> int:
        """How many tokens stand for an image."""
        return self.processor.image_seq_length

    @property
    def mean_images(self) -> float:
        """Images of a conversation on average, tiles included: of some of them, of which no pixels are read."""
        texts = EncodedDataset(
            self.conversations, self.processor, self.max_seq_len, False, on_bad=self.on_bad
        )
        places = np.linspace(0, len(self) - 1, min(len(self), _SOME)).astype(int)
        tokens = sum(int(texts[place].mm_token_type_ids.sum()) for place in places)
        return tokens / self.tokens_per_image / max(len(places), 1)

    @property
    def cut(self) -> CutCount:
        """What was cut so far, in this process and in its loader's workers."""
        conversations, turns = self._cut.sum(dim=0).tolist()
        return CutCount(conversations, turns)

    def _with_images(self, sample: Sample, images: Sequence[Image]) -> Sample:
        views = self.processor.views(images)
        if self.features is not None:
            return replace(sample, image_features=self.features.of(views))
        return replace(sample, pixel_values=self.processor.pixel_values(views))

    def _without_bad(self, members: Sequence[SourceRecord], error: ValueError) -> Sample:
        """Try the records one by one, and join those that are sound."""
        sound, bad = self._sorted_out(members)
        if not bad:  # sound alone, but not together: none of them can be blamed, so all are left out
            bad = [BadRecord.of(member.place, error) for member in members]
        elif sound:
            named = {each.place for each in bad}
            rest = [member.place for member in members if member.place not in named]
            try:
                return replace(self.encode(join(sound), rest), bad=tuple(bad))
            except DataError:
                raise
            except ValueError as second:
                bad += [BadRecord.of(place, second) for place in rest]
        return replace(self.empty_sample, bad=tuple(bad))

    def _sorted_out(self, members: Sequence[SourceRecord]) -> tuple[list[Conversation], list[BadRecord]]:
        sound, bad = [], []
        for member in members:
            try:
                conversation = member.read()
                self.encode(conversation, count_cut=False)
                sound.append(conversation)
            except DataError:
                raise
            except ValueError as error:
                bad.append(BadRecord.of(member.place, error))
        return sound, bad

    def _count(self, cut_turns: int) -> None:
        if cut_turns:
            worker = get_worker_info()
            self._cut[worker.id + 1 if worker else 0] += torch.tensor([1, cut_turns])


class _ImageSizes(Dataset[list[tuple[int, int]] | None]):
    """Width and height of the images of each record; None of one that cannot be read."""

    def __init__(self, part: Mixture) -> None:
        self.part = part

    def __len__(self) -> int:
        return self.part.num_sources

    def __getitem__(self, record: int) -> list[tuple[int, int]] | None:
        try:
            return [image.size for image in self.part.source(record).images]
        except (ConversationError, ImageError):
            return None


@contextmanager
def _naming(conversation: Conversation) -> Iterator[None]:
    """Errors about images name the record."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{conversation.source}: {error}") from error
