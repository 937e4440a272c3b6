"""From dataset names to a sequence of conversations: counts, weights, concatenation and split.

What conversations an epoch has (which ones come, and which are joined) are index maps, made before anything is read.
The published recipe concatenates 1 to n samples of a dataset (https://arxiv.org/abs/2309.14327, section 4.1), so that
single-image data teach dialogues over several images.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from utils.conversation import Conversation, ConversationError, join
from utils.data.bad_records import BadRecords, RecordPlace, SourceRecord
from utils.data.mixing.dataset import DatasetRecords
from utils.data.mixing.index import DatasetIndex, RecordCounts, index_dataset, select
from utils.data.registry import find_specs, require_files
from utils.data.spec import DataError, Grouping, LeftOut, one_for_each


def group(
    image_counts: np.ndarray,
    most: int,
    max_images: int,
    rng: np.random.Generator,
    apart: np.ndarray | None = None,
) -> Grouping:
    """Shuffle indices 0..n-1 and cut them into groups of 1 to `most`, sizes drawn evenly.

    A group is closed early where the next member would bring it over `max_images`. No single member may be
    over.

    Args:
        image_counts: [n], the images of each index.
        apart: [n], indices with different values are never in one group; without it all may be.
    """
    assert not len(image_counts) or image_counts.max() <= max_images
    members = rng.permutation(len(image_counts))
    sort = np.zeros(len(members), dtype=np.int64) if apart is None else apart[members]
    together = np.argsort(sort, kind="stable")
    members, sort = members[together], sort[together]
    sizes = iter(rng.integers(1, most, size=len(members), endpoint=True).tolist())
    borders = [0]
    size, images = next(sizes, 0), 0
    breaks = np.append(False, sort[1:] != sort[:-1]).tolist()
    for position, (count, is_break) in enumerate(zip(image_counts[members].tolist(), breaks, strict=False)):
        if position - borders[-1] == size or images + count > max_images or is_break:
            borders.append(position)
            size, images = next(sizes), 0
        images += count
    if len(members):
        borders.append(len(members))
    return Grouping(members, np.array(borders, dtype=np.int64))


def refill(grouping: Grouping, kinds: np.ndarray, members: Sequence[np.ndarray]) -> Grouping:
    """Groups of the same number and sizes, in which other members take the places of their kind.

    Args:
        kinds: [n], the kind of the member at each position of `grouping`, counted from 0.
        members: of each kind as many as it has positions.
    """
    filled = np.empty_like(grouping.members)
    if len(members):
        filled[np.argsort(kinds, kind="stable")] = np.concatenate(members)
    return Grouping(filled, grouping.borders)


def visit(members: np.ndarray, count: int, epoch: int, seed: Sequence[int]) -> np.ndarray:
    """The `count` members that come in an epoch.

    Seeded permutations of all members follow each other without end, and each epoch takes the next `count`:
    so after any number of epochs every member has come equally often, give or take once, whatever `count`.
    """
    start, stop = epoch * count, (epoch + 1) * count
    first, last = start // len(members), -(-stop // len(members))
    passes = [np.random.default_rng([*seed, each]).permutation(members) for each in range(first, last)]
    offset = first * len(members)
    return np.concatenate(passes)[start - offset : stop - offset]


@dataclass(frozen=True, eq=False)
class MixtureIndex:
    """What is known of all n conversations that a mixture joins, without reading them again."""

    datasets: tuple[DatasetRecords, ...]
    indexes: tuple[DatasetIndex, ...]
    concatenate: tuple[int, ...]  # of each dataset
    weights: tuple[float, ...]  # of each dataset
    dataset_of: np.ndarray  # [n] number of the dataset
    index_of: np.ndarray  # [n] place in the dataset's index
    image_counts: np.ndarray  # [n]
    first_images: np.ndarray  # [n] uint64, equal where the first image is the same file
    systems: np.ndarray  # [n] uint64, equal where the system text is the same
    max_images: int
    seed: int
    record_counts: dict[str, RecordCounts]

    def read(self, number: int, epoch: int) -> Conversation:
        """Read conversation `number`, with what its adapter draws in `epoch`."""
        records, index = self.datasets[self.dataset_of[number]], int(self.index_of[number])
        members = self._arranged(number)
        adapted = records.adapt(records.record(members, records.rng(self.seed, epoch, index)))
        if isinstance(adapted, LeftOut):  # an image file that was there when the index was made
            raise ConversationError(
                f"{records.place(members[0])}: it cannot be used any more: {adapted.reason}"
            )
        return adapted

    def place(self, number: int) -> RecordPlace:
        """Where the first record of conversation `number` is."""
        return self.datasets[self.dataset_of[number]].place(self._arranged(number)[0])

    def record(self, number: int, epoch: int) -> SourceRecord:
        """The records that conversation `number` is made of, as one."""
        own = self.indexes[self.dataset_of[number]].arrangement.own[self.index_of[number]]
        return SourceRecord(self.place(number), partial(self.read, number, epoch), int(own))

    def _arranged(self, number: int) -> list[int]:
        return self.indexes[self.dataset_of[number]].arrangement[int(self.index_of[number])].tolist()


@dataclass(frozen=True, eq=False)
class _Kind:
    """Conversations that may take each other's places in groups, and how many of them come in an epoch."""

    members: np.ndarray  # [m], numbers in the mixture's index
    size: int
    seed: tuple[int, ...]


class DatasetShare:
    """What one dataset contributes to a mixture: which of its conversations come in an epoch, and their groups.

    The number of groups and their sizes are the same in all epochs, so a training knows its steps: groups are
    made once, of kinds of conversations, and each epoch fills other conversations of these kinds in.
    """

    def __init__(self, known: MixtureIndex, number: int, chosen: np.ndarray, weight: float) -> None:
        """`chosen` are those of the index's conversations that the mixture has, of all datasets."""
        mine = chosen[known.dataset_of[chosen] == number]
        # By name, so that a dataset's groups do not depend on which others are there.
        seed = (known.seed, zlib.crc32(known.datasets[number].spec.name.encode()))
        # A kind is of one system text and one number of images; others could not be joined in its place.
        traits = np.stack([known.systems[mine], known.image_counts[mine].astype(np.uint64)], axis=1)
        kinds, kind_of = np.unique(traits, axis=0, return_inverse=True)  # [k, 2], [mine]
        by_kind = _split(mine, kind_of.reshape(-1), len(kinds))
        sizes = [round(weight * len(each)) for each in by_kind]

        _, system_of = np.unique(kinds[:, 0], return_inverse=True)
        self._kinds = [
            _Kind(members, size, (*seed, *map(int, kind)))
            for members, size, kind in zip(by_kind, sizes, kinds, strict=True)
            if size
        ]
        images = [
            np.full(size, count) for size, count in zip(sizes, kinds[:, 1].astype(np.int64), strict=True)
        ]
        apart = [np.full(size, system) for size, system in zip(sizes, system_of, strict=True)]
        # Of a kind so rare that its weight leaves less than one an epoch, each is taken in turn with those of
        # the other such kinds, and stays alone: so none is lost, and none comes too often.
        rare = [members for members, size in zip(by_kind, sizes, strict=True) if not size]
        if rare:
            members = np.concatenate(rare)
            size = max(1, round(weight * len(members)))
            self._kinds.append(_Kind(members, size, (*seed, len(kinds))))
            images.append(np.zeros(size, dtype=np.int64))
            apart.append(len(kinds) + np.arange(size))

        slots = np.repeat(np.arange(len(self._kinds)), [kind.size for kind in self._kinds])
        self._shape = group(
            _joined(images),
            known.concatenate[number],
            known.max_images,
            np.random.default_rng(seed),
            _joined(apart),
        )
        self._kind_at = slots[self._shape.members]

    def groups(self, epoch: int) -> Grouping:
        """The groups of an epoch, of numbers in the mixture's index."""
        members = [visit(kind.members, kind.size, epoch, kind.seed) for kind in self._kinds]
        return refill(self._shape, self._kind_at, members)


def _split(values: np.ndarray, part_of: np.ndarray, parts: int) -> list[np.ndarray]:
    """The values of each part, in their order."""
    borders = np.cumsum(np.bincount(part_of, minlength=parts))
    return np.split(values[np.argsort(part_of, kind="stable")], borders)[:-1]


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])


class Mixture(Sequence[Conversation]):
    """Conversations of one or several datasets, concatenated; records are read when they are asked for."""

    def __init__(self, known: MixtureIndex, chosen: np.ndarray, weights: Sequence[float]) -> None:
        self._known = known
        self._chosen = chosen
        self._shares = [DatasetShare(known, number, chosen, weight) for number, weight in enumerate(weights)]
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._grouping)

    def __getitem__(self, index: int) -> Conversation:
        if not -len(self) <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        return join([self._known.read(each, self._epoch) for each in self._grouping[index % len(self)]])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def places_of(self, index: int) -> list[RecordPlace]:
        """Where the records are that conversation `index` is joined of."""
        return [self._known.place(each) for each in self._grouping[index].tolist()]

    def records_of(self, index: int) -> list[SourceRecord]:
        """These records."""
        return [self._known.record(each, self._epoch) for each in self._grouping[index].tolist()]

    @property
    def num_sources(self) -> int:
        """How many conversations, before joining, there are to choose from in any epoch."""
        return len(self._chosen)

    def source(self, number: int) -> Conversation:
        """One of these, with what its adapter draws in the first epoch; its pictures are those of all epochs."""
        return self._known.read(int(self._chosen[number]), 0)

    @property
    def records_per_dataset(self) -> dict[str, int]:
        """How many records each dataset contributes, by its name."""
        known, counts = self._known, {}
        for number, (records, index) in enumerate(zip(known.datasets, known.indexes, strict=True)):
            mine = self._chosen[known.dataset_of[self._chosen] == number]
            counts[records.spec.name] = int(index.arrangement.own[known.index_of[mine]].sum())
        return counts

    @property
    def record_counts(self) -> dict[str, RecordCounts]:
        """What became of all records of each dataset, before any split."""
        return self._known.record_counts

    @property
    def fingerprint(self) -> str:
        """The same where the conversations are: of the same files, joined and drawn alike in the current epoch."""
        known, members = self._known, self._grouping.members
        digest = hashlib.sha256(f"{known.seed} {self._epoch}".encode())
        for index in known.indexes:
            digest.update(f" {index.identity}".encode())
        for array in (known.dataset_of[members], known.index_of[members], self._grouping.borders):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    @property
    def contents(self) -> dict[str, str]:
        """A digest of each dataset's annotation files, by its name: of what is in them, not of where they are."""
        return {records.spec.name: records.content() for records in self._known.datasets}

    def set_epoch(self, epoch: int) -> None:
        """Join other records in each epoch, and draw anew, into as many conversations; repeatable from seed and
        epoch, whatever came before.
        """
        self._epoch = epoch
        groupings = [share.groups(epoch) for share in self._shares]
        sizes = [np.diff(grouping.borders) for grouping in groupings]
        borders = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
        self._grouping = Grouping(np.concatenate([grouping.members for grouping in groupings]), borders)


def build_dataset(
    names: Sequence[str],
    data_path: str | Path,
    samples: str | int | Sequence[str | int] = "all",
    concatenate: int | Sequence[int] = 1,
    max_images: int = 8,
    seed: int = 1234,
    bad: BadRecords | None = None,
    weights: float | Sequence[float] = 1.0,
    image_folder: str | Path | None = None,
) -> Mixture:
    """The conversations of the named datasets, lazily read; the same on every process for the same arguments.

    Args:
        names: names of the registry, and paths of files of one's own (.json, .jsonl, .parquet, or a folder
        that `datasets` has written).
        data_path: the folder under which the datasets' files are.
        samples: how many to take at random, "all" for all: one value, or one for each name.
        concatenate: join 1 to this many of a dataset at random, each exactly once: one value, or one for each
        name.
        max_images: no conversation has more images; records that have are left out.
        bad: takes up records and files that cannot be used; without it the first of them is an error.
        weights: how often a record comes in an epoch: 1 once, 2 twice, 0.5 every other time; one value, or one
        for each name.
        image_folder: where the pictures of one's own files are; without it, beside each file.

    Raises `DataError` for unknown names, missing files (all at once) and values that do not fit, and
    `ConversationError` for a record that is not in its dataset's format.
    """
    specs = find_specs(names, image_folder)
    samples = one_for_each(samples, names, "--dataset_samples")
    concatenate = one_for_each(concatenate, names, "--dataset_concatenate_samples")
    if min(concatenate) < 1:
        raise DataError(f"--dataset_concatenate_samples is {min(concatenate)}; it has to be at least 1")
    weights = [float(weight) for weight in one_for_each(weights, names, "--dataset_weights")]
    if not all(0 < weight < float("inf") for weight in weights):
        raise DataError(f"--dataset_weights is {min(weights)}; it has to be above 0")
    data_path = Path(data_path)
    require_files(specs, data_path)

    datasets = tuple(DatasetRecords(spec, data_path, bad) for spec in specs)
    indexes = tuple(index_dataset(records) for records in datasets)
    selected = [
        select(records, index, count, max_images, seed, bad)
        for records, index, count in zip(datasets, indexes, samples, strict=True)
    ]
    chosen = [places for places, _ in selected]
    if bad is not None:
        bad.check()
        if len(bad) and not sum(map(len, chosen)):
            raise DataError(
                f"no record of {', '.join(names)} can be used; {len(bad):,} are bad, the first of them"
                f" {bad.sorted()[0].place}: {bad.sorted()[0].reason}"
            )
    known = MixtureIndex(
        datasets=datasets,
        indexes=indexes,
        concatenate=tuple(concatenate),
        weights=tuple(weights),
        dataset_of=np.repeat(np.arange(len(datasets)), [len(indices) for indices in chosen]),
        index_of=np.concatenate(chosen),
        image_counts=_of_all([index.image_counts for index in indexes], chosen),
        first_images=_of_all([index.first_images for index in indexes], chosen),
        systems=_of_all([index.systems for index in indexes], chosen),
        max_images=max_images,
        seed=seed,
        record_counts={spec.name: account for spec, (_, account) in zip(specs, selected, strict=True)},
    )
    return Mixture(known, np.arange(len(known.dataset_of)), weights)


def split_dataset(dataset: Mixture, train_ratio: float = 0.9, seed: int = 1234) -> tuple[Mixture, Mixture]:
    """Divide a dataset's records into a training and an evaluation part, and concatenate each part anew.

    Every record is in exactly one part, and records with the same first picture are in the same part, so the
    pictures of single-picture datasets are never in both; which part does not depend on where the data folder
    is. A ratio below 1 holds out at least one picture where there are two. Weights are for training: in the
    evaluation part every record comes once.
    """
    if not 0 < train_ratio <= 1:
        raise DataError(f"the training share is {train_ratio}; it has to be above 0 and at most 1")
    known, chosen = dataset._known, dataset._chosen
    _, image = np.unique(known.first_images[chosen], return_inverse=True)  # [chosen]
    sizes = np.bincount(image)
    order = np.random.default_rng(seed).permutation(len(sizes))
    wanted = round((1 - train_ratio) * len(image))
    count = int(np.searchsorted(sizes[order].cumsum(), wanted)) + 1 if train_ratio < 1 else 0
    is_eval = np.zeros(len(sizes), dtype=bool)
    is_eval[order[: min(count, len(sizes) - 1)]] = True
    held_out = is_eval[image]
    return (
        Mixture(known, chosen[~held_out], known.weights),
        Mixture(known, chosen[held_out], [1.0] * len(known.datasets)),
    )


def _of_all(values: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([each[places] for each, places in zip(values, chosen, strict=True)])
