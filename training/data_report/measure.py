"""Every conversation read, encoded and its pictures decoded, in parallel: what there is, and what is bad in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset

from utils.commands import progress
from utils.conversation import Conversation, ImageError, join
from utils.data import DataError, EncodedDataset, Mixture
from utils.data.bad_records import BadRecord
from utils.data.batching.encode import ConversationEncoder

_COUNTS = ("tokens", "learned", "images", "turns", "cut_turns", "records")
_CHUNK = 16  # conversations that a worker hands over at a time


@dataclass(frozen=True)
class Facts:
    """What is counted of one conversation as training sees it, and the bad records that were left out of it."""

    dataset: str
    tokens: int  # 0 where nothing sound is in it, and so for the others
    learned: int  # supervised tokens
    images: int
    turns: int
    cut_turns: int  # that --max_seq_len takes away
    records: int  # sound ones that it is made of
    bad: tuple[BadRecord, ...] = ()


class _Measured(Dataset):
    """The `Facts` of each conversation of a mixture."""

    def __init__(self, conversations: Mixture, processor: ConversationEncoder, max_seq_len: int) -> None:
        self._conversations = conversations
        self._encoded = EncodedDataset(conversations, processor, max_seq_len)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> Facts:
        sound, bad, encoded, records = [], [], None, 0
        members = self._conversations.records_of(index)
        dataset = members[0].place.dataset
        for member in members:
            try:
                conversation = member.read()
                encoded = self._encoded.encode(conversation, count_cut=False)
                _open_the_rest(conversation, len(encoded.turn_ends))
                sound.append(conversation)
                records += member.records
            except DataError:
                raise
            except ValueError as error:  # as in EncodedDataset
                bad.append(BadRecord.of(member.place, error))
        if not sound or encoded is None:
            return Facts(dataset, 0, 0, 0, 0, 0, 0, tuple(bad))
        conversation = sound[0]
        if len(members) > 1:
            conversation = join(sound)
            encoded = self._encoded.encode_text(conversation)
        kept = conversation.turns[: len(encoded.turn_ends)]
        return Facts(
            dataset,
            tokens=len(encoded.input_ids),
            learned=int((encoded.labels >= 0).sum()),
            images=int(encoded.mm_token_type_ids.sum()) // self._encoded.tokens_per_image,  # tiles count
            turns=len(kept),
            cut_turns=len(conversation.turns) - len(kept),
            records=records,
            bad=tuple(bad),
        )


def _open_the_rest(conversation: Conversation, first: int) -> None:
    """The pictures of turns that are cut here: another epoch may join them to a shorter neighbour."""
    for image in (image for turn in conversation.turns[first:] for image in turn.images):
        try:
            image.open()
        except ImageError as error:
            raise ImageError(f"{conversation.source}: {error}") from error


@dataclass(frozen=True, eq=False)
class Measurement:
    """The facts of n conversations, as columns."""

    dataset: np.ndarray  # [n] names
    tokens: np.ndarray  # [n], and so the others
    learned: np.ndarray
    images: np.ndarray
    turns: np.ndarray
    cut_turns: np.ndarray
    records: np.ndarray
    bad: tuple[BadRecord, ...]

    @classmethod
    def of(cls, facts: Sequence[Facts]) -> "Measurement":
        """From the facts of all conversations; those in which nothing is sound only tell what is bad."""
        kept = [each for each in facts if each.tokens]
        columns = {name: np.array([getattr(each, name) for each in kept], dtype=np.int64) for name in _COUNTS}
        return cls(
            dataset=np.array([each.dataset for each in kept], dtype=object),
            bad=tuple(bad for each in facts for bad in each.bad),
            **columns,
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def only(self, dataset: str) -> "Measurement":
        """The conversations of one dataset."""
        mine = self.dataset == dataset
        columns = {name: getattr(self, name)[mine] for name in ("dataset", *_COUNTS)}
        return Measurement(**columns, bad=tuple(bad for bad in self.bad if bad.place.dataset == dataset))


def measure(
    parts: Sequence[Mixture], processor: ConversationEncoder, max_seq_len: int, workers: int
) -> Measurement:
    """Read everything once in `workers` processes (0: in this one), with `progress` on the way.

    Raises `DataError` where the data cannot be read at all, nothing for bad records.
    """
    facts: list[Facts] = []
    bad = 0
    with progress("checking", sum(map(len, parts)), "conversations", keep=True) as advance:
        for part in parts:
            loader = DataLoader(
                _Measured(part, processor, max_seq_len),
                batch_size=_CHUNK,
                num_workers=min(workers, -(-len(part) // _CHUNK)),
                collate_fn=list,
                prefetch_factor=4 if workers and len(part) else None,
            )
            for chunk in loader if len(part) else ():
                facts += chunk
                bad += sum(len(each.bad) for each in chunk)
                advance(len(chunk), bad=bad)
    return Measurement.of(facts)
