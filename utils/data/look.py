"""What grouping, the split and the account need to know of a conversation, seen by adapting its record once."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from utils.conversation import Conversation, ConversationError, ImageError
from utils.data.bad_data import BadRecord
from utils.data.record_set import RecordSet
from utils.data.spec import Arrangement, LeftOut, RawRecord


@dataclass(frozen=True)
class Look:
    """A conversation, or the `rule` that leaves it out, or the `problem` that makes it bad."""

    images: int = 0
    absent: int = 0  # pictures that it names and its image store lacks
    picture: int = 0  # a fingerprint of the first one, of the record's place where there is none
    system: int = 0  # a fingerprint of the system text, 0 where there is none
    rule: str | None = None
    problem: str | None = None
    repairs: tuple[str, ...] = ()  # what was left out or joined to make a conversation of it


class Looks(Dataset):
    """A look at each conversation of a dataset, in its first epoch: what adapters draw changes words alone."""

    def __init__(self, records: RecordSet, arrangement: Arrangement) -> None:
        self._records, self._arrangement = records, arrangement
        folders = [records.data_path, *(place for place in records.places if isinstance(place, Path))]
        self._roots = [os.path.join(folder, "") for folder in folders]  # as strings: the quickest to compare

    def __len__(self) -> int:
        return len(self._arrangement)

    def __getitem__(self, number: int) -> Look:
        records, members = self._records, self._arrangement[number].tolist()
        record = records.record(members, records.rng(0, 0, number))
        try:
            adapted = records.adapt(record)
            absent = _absent(records, record, adapted)
        except (ConversationError, ImageError) as error:
            return Look(problem=BadRecord.of(records.place(members[0]), error).reason)
        if isinstance(adapted, LeftOut):
            return Look(absent=absent, rule=adapted.reason)
        return Look(
            images=len(adapted.images),
            absent=absent,
            picture=_fingerprint(self._first_picture(adapted)),
            system=0 if adapted.system is None else _fingerprint(adapted.system.encode()),
            repairs=adapted.repairs,
        )

    def _first_picture(self, conversation: Conversation) -> bytes:
        """What the first picture is known by wherever the data folder is, or the record where there is none.

        A file is known by its path below the data folder or the image folder, a picture in an annotation file
        by its bytes.
        """
        if not conversation.images:
            return conversation.source.encode()
        image = conversation.images[0]
        if isinstance(image.source, bytes):
            return image.source
        if isinstance(image.source, str | Path):
            path = str(image.source)
            root = next((root for root in self._roots if path.startswith(root)), "")
            return path[len(root) :].encode()
        return image.name.encode()


def _absent(records: RecordSet, record: RawRecord, adapted: Conversation | LeftOut) -> int:
    if records.spec.image_names is None:
        return 0
    shown = len(adapted.images) if isinstance(adapted, Conversation) else 0
    return len(records.spec.image_names(record)) - shown


def _fingerprint(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
