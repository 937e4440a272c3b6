"""Every conversation read, encoded and its pictures decoded, in parallel: what there is, and what is bad in it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd
from torch.utils.data import DataLoader, Dataset

from utils.commands import progress
from utils.conversation import Conversation, ImageError, join
from utils.data import DataError, EncodedDataset, Mixture
from utils.data.bad_records import BadRecord
from utils.data.batching.encode import ConversationEncoder

_CHUNK = 16  # conversations that a worker hands over at a time


@dataclass(frozen=True)
class Facts:
    """What is counted of one conversation as training sees it; nothing where no record of it is sound."""

    dataset: str
    tokens: int
    learned: int  # supervised tokens
    images: int
    turns: int
    cut_turns: int  # that --max_seq_len takes away
    records: int  # sound ones that it is made of


class _Measured(Dataset):
    """The `Facts` of each conversation of a mixture, where something in it is sound, and the bad records."""

    def __init__(self, conversations: Mixture, processor: ConversationEncoder, max_seq_len: int) -> None:
        self._conversations = conversations
        self._encoded = EncodedDataset(conversations, processor, max_seq_len)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> tuple[Facts | None, list[BadRecord]]:
        sound, bad, encoded, records = [], [], None, 0
        members = self._conversations.records_of(index)
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
            return None, bad
        conversation = sound[0]
        if len(members) > 1:
            conversation = join(sound)
            encoded = self._encoded.encode_text(conversation)
        kept = conversation.turns[: len(encoded.turn_ends)]
        facts = Facts(
            members[0].place.dataset,
            tokens=len(encoded.input_ids),
            learned=int((encoded.labels >= 0).sum()),
            images=int(encoded.mm_token_type_ids.sum()) // self._encoded.tokens_per_image,  # tiles count
            turns=len(kept),
            cut_turns=len(conversation.turns) - len(kept),
            records=records,
        )
        return facts, bad


def _open_the_rest(conversation: Conversation, first: int) -> None:
    """The pictures of turns that are cut here: another epoch may join them to a shorter neighbour."""
    for image in (image for turn in conversation.turns[first:] for image in turn.images):
        try:
            image.open()
        except ImageError as error:
            raise ImageError(f"{conversation.source}: {error}") from error


def measure(
    parts: Sequence[Mixture], processor: ConversationEncoder, max_seq_len: int, workers: int
) -> tuple[pd.DataFrame, list[BadRecord]]:
    """Read everything once in `workers` processes (0: in this one), with `progress` on the way.

    Returns the `Facts` of all conversations, a row for each, and the bad records. Raises `DataError` where the data
    cannot be read at all.
    """
    facts: list[Facts] = []
    bad: list[BadRecord] = []
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
                facts += [found for found, _ in chunk if found]
                bad += [each for _, of_one in chunk for each in of_one]
                advance(len(chunk), bad=len(bad))
    return pd.DataFrame(facts, columns=[field.name for field in fields(Facts)]), bad
