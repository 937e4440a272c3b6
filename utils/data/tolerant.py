"""Encoded conversations that never fail: a bad record costs its own place, and nothing else.

Ranks have to stay in step under ZeRO-3, and no record may stand in for another. So a conversation keeps its
place whatever is wrong with it: what is sound in it is learned, and where nothing is, a few tokens without
labels are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.conversation import Conversation, Turn
from utils.data.bad_data import BadRecord, Member, RecordPlace
from utils.data.encode import IGNORED_LABEL, CutCount, Encoded, EncodedDataset
from utils.data.grouping import join
from utils.data.origins import Origin
from utils.data.spec import DataError

_FEW = 8  # tokens


class JoinedConversations(Protocol):
    """A mixture: conversations whose records are known one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...

    def members(self, index: int) -> list[Member]: ...


@dataclass(frozen=True, eq=False)
class Row:
    """An encoded conversation (`Encoded`), the records it is made of, and the bad ones found in making it."""

    input_ids: np.ndarray  # [S]
    labels: np.ndarray  # [S]
    mm_token_type_ids: np.ndarray  # [S]
    turn_ends: np.ndarray  # [turns]
    pixel_values: torch.Tensor | None  # [images, 3, H, W]
    places: tuple[RecordPlace, ...] = ()
    bad: tuple[BadRecord, ...] = ()

    @property
    def origins(self) -> tuple[Origin, ...]:
        """This conversation's one; none where nothing is learned."""
        supervised = int((self.labels != IGNORED_LABEL).sum())
        return (Origin(self.places, supervised),) if supervised else ()


class TolerantDataset(Dataset):
    """The rows of an `EncodedDataset` over a mixture; bad records are left out of them and named in `Row.bad`."""

    def __init__(self, encoded: EncodedDataset) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Row:
        """Raises `DataError` where the data cannot be read at all (a cache that is gone), else nothing."""
        try:
            return _row(self.encoded[index], self.encoded.conversations.members(index))
        except DataError:
            raise
        except ValueError as error:  # ConversationError, ImageError, and the processor's about a text
            return self._without_bad(index, error)

    @cached_property
    def nothing(self) -> Row:
        """A few tokens of which nothing is learned."""
        empty = Conversation((Turn("-", "-"),), source="nothing to learn")
        encoded = self.encoded.processor.encode(empty, load_images=False)
        ids, kinds = encoded.input_ids[:_FEW], encoded.mm_token_type_ids[:_FEW]
        return Row(ids, np.full_like(ids, IGNORED_LABEL), kinds, np.array([len(ids)]), None)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to conversations that are joined anew in each."""
        self.encoded.set_epoch(epoch)

    def sketch(self, epoch: int) -> "TolerantDataset":
        """The rows of an epoch without pixels, and with those bad records that their texts give away."""
        return TolerantDataset(self.encoded.sketch(epoch))

    @property
    def fingerprint(self) -> str | None:
        """The same where all rows are, pixels aside; None where nobody knows."""
        return self.encoded.fingerprint

    @property
    def tokens_per_image(self) -> int:
        """How many tokens stand for an image."""
        return self.encoded.processor.image_seq_length

    @property
    def cut(self) -> CutCount:
        """What `max_seq_len` took away so far."""
        return self.encoded.cut

    def _without_bad(self, index: int, error: ValueError) -> Row:
        """Try the records one by one, and join those that are sound."""
        members = self.encoded.conversations.members(index)
        sound, bad = self._sorted_out(members)
        if not bad:  # sound alone, but not together: none of them can be blamed, so all are left out
            bad = [BadRecord.of(member.place, error) for member in members]
        elif sound:
            named = {each.place for each in bad}
            rest = [member for member in members if member.place not in named]
            try:
                return replace(_row(self.encoded.encode(join(sound)), rest), bad=tuple(bad))
            except DataError:
                raise
            except ValueError as second:
                bad += [BadRecord.of(each.place, second) for each in rest]
        return replace(self.nothing, bad=tuple(bad))

    def _sorted_out(self, members: Sequence[Member]) -> tuple[list[Conversation], list[BadRecord]]:
        sound, bad = [], []
        for member in members:
            try:
                conversation = member.read()
                self.encoded.encode(conversation, count_cut=False)
                sound.append(conversation)
            except DataError:
                raise
            except ValueError as error:
                bad.append(BadRecord.of(member.place, error))
        return sound, bad


def _row(encoded: Encoded, members: Sequence[Member]) -> Row:
    return Row(
        encoded.input_ids,
        encoded.labels,
        encoded.mm_token_type_ids,
        encoded.turn_ends,
        encoded.pixel_values,
        tuple(member.place for member in members),
    )
