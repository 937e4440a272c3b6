"""From dataset names to a sequence of conversations: records, counts, concatenation and split."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from utils.conversation import Conversation, ConversationError
from utils.data.bad_data import BadRecord, BadRecords, Member, RecordPlace
from utils.data.grouping import Grouping, group, join, regroup
from utils.data.registry import find_specs, require_files
from utils.data.sources import open_records
from utils.data.spec import DataError, DatasetSpec, RawRecord
from utils.distributed import get_logger

logger = get_logger(__name__)

_Value = TypeVar("_Value", int, str)


class RecordSet(Sequence[Conversation]):
    """One dataset: the records of its annotation files in order, adapted when they are asked for."""

    def __init__(self, spec: DatasetSpec, data_path: Path, bad: BadRecords | None = None) -> None:
        self.spec = spec
        self._image_folders = tuple(data_path / part.path for part in spec.images)
        self._files = [_open(part.path, spec.name, data_path, bad) for part in spec.annotations]
        self._first = np.cumsum([0, *map(len, self._files)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def place(self, index: int) -> RecordPlace:
        """Where a record is to be found."""
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return RecordPlace(self.spec.name, self.spec.annotations[file].path, int(index - self._first[file]))

    def __getitem__(self, index: int) -> Conversation:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        fields = self._files[file][int(index - self._first[file])]
        record = RawRecord(fields, str(self.place(index)), self._image_folders)
        try:
            return self.spec.adapter(record)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise record.error(f"not in the format of {self.spec.name} ({error!r})") from error


@dataclass(frozen=True, eq=False)
class _Recipe:
    """What is known of all n records of a mixture without reading them again."""

    sets: tuple[RecordSet, ...]
    concatenate: tuple[int, ...]  # of each set
    set_of: np.ndarray  # [n] number of the set
    index_of: np.ndarray  # [n] place in the set
    image_counts: np.ndarray  # [n]
    pictures: np.ndarray  # [n] uint64, equal where the first picture is the same file
    max_images: int
    seed: int

    def grouped(self, chosen: np.ndarray) -> Grouping:
        """Group the chosen records, those of each set among themselves."""
        members, sizes = [], []
        for number, record_set in enumerate(self.sets):
            mine = chosen[self.set_of[chosen] == number]
            # By name, so that a set's groups do not depend on which others are there.
            rng = np.random.default_rng([self.seed, zlib.crc32(record_set.spec.name.encode())])
            grouping = group(self.image_counts[mine], self.concatenate[number], self.max_images, rng)
            members.append(mine[grouping.members])
            sizes.append(np.diff(grouping.borders))
        borders = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
        return Grouping(np.concatenate(members), borders)


class Mixture(Sequence[Conversation]):
    """Conversations of one or several datasets, concatenated; records are read when they are asked for."""

    def __init__(self, recipe: _Recipe, records: np.ndarray) -> None:
        self._recipe = recipe
        self._records = records
        self._initial = self._grouping = recipe.grouped(records)

    def __len__(self) -> int:
        return len(self._grouping)

    def __getitem__(self, index: int) -> Conversation:
        if not -len(self) <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        recipe = self._recipe
        members = self._grouping[index % len(self)]
        return join([recipe.sets[recipe.set_of[each]][recipe.index_of[each]] for each in members])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def members(self, index: int) -> list[Member]:
        """The records that conversation `index` is joined of."""
        sets, set_of, index_of = self._recipe.sets, self._recipe.set_of, self._recipe.index_of
        return [
            Member(
                sets[set_of[each]].place(index_of[each]),
                partial(sets[set_of[each]].__getitem__, int(index_of[each])),
            )
            for each in self._grouping[index]
        ]

    @property
    def num_records(self) -> int:
        """How many records the conversations are made of, each in exactly one."""
        return len(self._records)

    @property
    def records_per_dataset(self) -> dict[str, int]:
        """How many records each dataset contributes, by its name."""
        counts = np.bincount(self._recipe.set_of[self._records], minlength=len(self._recipe.sets))
        return {each.spec.name: int(count) for each, count in zip(self._recipe.sets, counts, strict=True)}

    def set_epoch(self, epoch: int) -> None:
        """Join other records in each epoch, into as many conversations; repeatable from seed and epoch."""
        recipe = self._recipe
        kinds = recipe.set_of * (recipe.max_images + 1) + recipe.image_counts
        rng = np.random.default_rng([recipe.seed, epoch])
        self._grouping = regroup(self._initial, kinds, rng) if epoch else self._initial

    def split(self, train_ratio: float, seed: int) -> tuple["Mixture", "Mixture"]:
        """See `split_dataset`."""
        if not 0 < train_ratio <= 1:
            raise DataError(f"the training share is {train_ratio}; it has to be above 0 and at most 1")
        _, picture = np.unique(self._recipe.pictures[self._records], return_inverse=True)  # [records]
        sizes = np.bincount(picture)
        order = np.random.default_rng(seed).permutation(len(sizes))
        wanted = round((1 - train_ratio) * len(picture))
        held_out = int(np.searchsorted(sizes[order].cumsum(), wanted)) + 1 if train_ratio < 1 else 0
        is_eval = np.zeros(len(sizes), dtype=bool)
        is_eval[order[: min(held_out, len(sizes) - 1)]] = True
        return (
            Mixture(self._recipe, self._records[~is_eval[picture]]),
            Mixture(self._recipe, self._records[is_eval[picture]]),
        )


def build_dataset(
    names: Sequence[str],
    data_path: str | Path,
    samples: str | int | Sequence[str | int] = "all",
    concatenate: int | Sequence[int] = 1,
    max_images: int = 8,
    seed: int = 1234,
    bad: BadRecords | None = None,
) -> Mixture:
    """The conversations of the named datasets, lazily read; the same on every process for the same arguments.

    Args:
        names: names of the registry.
        data_path: the folder under which the datasets' files are.
        samples: how many records to take at random, "all" for all: one value, or one for each name.
        concatenate: join 1 to this many records of a dataset at random, each record exactly once: one value,
        or one for each name. max_images: no conversation has more images.
        bad: takes up records and files that cannot be used; without it the first of them is an error.

    Raises `DataError` for unknown names, missing files (all at once) and values that do not fit, and
    `ConversationError` for a record that is not in its dataset's format or has too many images.
    """
    specs = find_specs(names)
    samples = one_for_each(samples, names, "--dataset_samples")
    concatenate = [int(most) for most in one_for_each(concatenate, names, "--dataset_concatenate_samples")]
    if min(concatenate) < 1:
        raise DataError(f"--dataset_concatenate_samples is {min(concatenate)}; it has to be at least 1")
    data_path = Path(data_path)
    require_files(specs, data_path)

    sets = tuple(RecordSet(spec, data_path, bad) for spec in specs)
    chosen = [_choose(records, count, seed) for records, count in zip(sets, samples, strict=True)]
    chosen, counts, pictures = _survey(sets, chosen, max_images, bad)
    if bad:
        bad.check()
        if not len(counts):
            raise DataError(
                f"no record of {', '.join(names)} can be used: {bad.sorted()[0].place} and all others are bad"
            )
    recipe = _Recipe(
        sets=sets,
        concatenate=tuple(concatenate),
        set_of=np.repeat(np.arange(len(sets)), [len(indices) for indices in chosen]),
        index_of=np.concatenate(chosen),
        image_counts=counts,
        pictures=pictures,
        max_images=max_images,
        seed=seed,
    )
    return Mixture(recipe, np.arange(len(counts)))


def split_dataset(dataset: Mixture, train_ratio: float = 0.9, seed: int = 1234) -> tuple[Mixture, Mixture]:
    """Divide a dataset's records into a training and an evaluation part, and concatenate each part anew.

    Every record is in exactly one part, and records with the same first picture are in the same part, so the
    pictures of single-picture datasets are never in both. A ratio below 1 holds out at least one picture
    where there are two.
    """
    return dataset.split(train_ratio, seed)


def one_for_each(values: _Value | Sequence[_Value], names: Sequence[str], option: str) -> list[_Value]:
    """One value for each name: a single one serves all. Raises `DataError` where the numbers differ."""
    listed = [values] if isinstance(values, str | int) else list(values)
    if len(listed) == 1:
        listed *= len(names)
    if len(listed) != len(names):
        raise DataError(
            f"{option} has {len(listed)} values for {len(names)} datasets; give one, or one for each"
        )
    return listed


def _choose(records: RecordSet, count: str | int, seed: int) -> np.ndarray:
    name = records.spec.name
    if count == "all":
        return np.arange(len(records))
    if not str(count).isdecimal() or int(count) < 1:
        raise DataError(f"--dataset_samples is {count!r} for {name}; it has to be a positive number or all")
    if int(count) > len(records):
        logger.warning(
            "%s has %d records, fewer than the %s asked for: all are taken", name, len(records), count
        )
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.permutation(len(records))[: int(count)])


def _survey(
    sets: Sequence[RecordSet], chosen: Sequence[np.ndarray], max_images: int, bad: BadRecords | None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Adapt every chosen record once: which are usable, the number of images of each, and a fingerprint of the
    first one's name.

    So a record that is not in the format, or has too many images, is named before training starts.
    """
    usable, counts, pictures = [], [], []
    for records, indices in zip(sets, chosen, strict=True):
        kept = []
        for index in indices.tolist():
            try:
                conversation = _within(records[index], max_images)
            except ConversationError as error:
                if bad is None:
                    raise
                bad.add(BadRecord.of(records.place(index), error))
                continue
            images = conversation.images
            kept.append(index)
            counts.append(len(images))
            shown = images[0].name if images else conversation.source
            pictures.append(int.from_bytes(hashlib.blake2b(shown.encode(), digest_size=8).digest(), "little"))
        usable.append(np.array(kept, dtype=np.int64))
        if bad is not None:
            bad.total += len(indices)
    return usable, np.array(counts, dtype=np.int64), np.array(pictures, dtype=np.uint64)


def _within(conversation: Conversation, max_images: int) -> Conversation:
    if len(conversation.images) > max_images:
        raise conversation.error(
            f"it has {len(conversation.images)} images, more than the maximum of {max_images};"
            " raise --max_num_image_per_sample"
        )
    return conversation


def _open(path: str, dataset: str, data_path: Path, bad: BadRecords | None) -> Sequence[dict]:
    try:
        return open_records(data_path / path)
    except DataError as error:
        if bad is None:
            raise
        bad.add(BadRecord(RecordPlace(dataset, path, None), str(error)))
        return []
