"""Where the supervised tokens of a batch come from: which records, of which dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

from utils.data.bad_data import RecordPlace


@dataclass(frozen=True)
class Origin:
    """The records that a conversation in a batch was joined of, and how many of its tokens are supervised.

    A batch lists its conversations in order, and so the dataset of each of its supervised tokens is known
    without anything as long as the batch itself.
    """

    places: tuple[RecordPlace, ...]
    supervised: int

    @property
    def dataset(self) -> str:
        """The dataset of all its records: others are never joined with them."""
        return self.places[0].dataset


def origin_at(origins: Sequence[Origin], token: int) -> Origin:
    """The conversation of a batch that its supervised token number `token` belongs to, counted from 0."""
    for origin in origins:
        if token < origin.supervised:
            return origin
        token -= origin.supervised
    raise IndexError("the batch has fewer supervised tokens")
