"""From names to conversations: everything in, once, the same on every process, and nothing written beside."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.conversation import Conversation
from utils.data import DataError, build_dataset, split_dataset


def records_in(conversations: Iterable[Conversation]) -> list[str]:
    return sorted(source for conversation in conversations for source in conversation.source.split(" + "))


def sources(file: str, numbers: Iterable[int]) -> list[str]:
    return [f"llava/{file}.json#{number}" for number in numbers]


def order(conversations: Iterable[Conversation]) -> list[str]:
    return [conversation.source for conversation in conversations]


MakeRecord = Callable[..., dict]
WriteRoot = Callable[..., Path]


def test_conversations_of_all_files_lazily_read(write_root: WriteRoot, record: MakeRecord) -> None:
    root = write_root([record(0)], [record(1), record(2)], [record(3, rounds=2)])
    dataset = build_dataset(["llava", "llava_dial"], root)
    assert len(dataset) == 4
    by_source = {conversation.source: conversation for conversation in dataset}
    last = by_source["llava/conversation_58k.json#0"]
    assert [turn.question for turn in last.turns] == ["Question 3, round 0?", "Question 3, round 1?"]
    assert last.images[0].open().getpixel((0, 0)) == (3, 0, 0)
    assert dataset[-1].source == dataset[3].source
    with pytest.raises(IndexError):
        dataset[4]


def test_records_of_different_datasets_are_not_joined(write_root: WriteRoot, record: MakeRecord) -> None:
    root = write_root([record(n) for n in range(20)], [], [record(n) for n in range(20)])
    dataset = build_dataset(["llava", "llava_dial"], root, concatenate=[3, 2])
    sizes = {"detail": Counter(), "conversation": Counter()}
    for conversation in dataset:
        names = conversation.source.split(" + ")
        kinds = {name.split("/")[1].split("_")[0] for name in names}
        assert len(kinds) == 1
        sizes[kinds.pop()][len(names)] += 1
    assert max(sizes["detail"]) == 3 and max(sizes["conversation"]) == 2


def test_no_conversation_has_more_images_than_the_maximum(write_root: WriteRoot, record: MakeRecord) -> None:
    root = write_root([record(number, pictures=number % 4) for number in range(60)])
    dataset = build_dataset(["llava"], root, concatenate=3, max_images=4)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert max(len(conversation.images) for conversation in dataset) <= 4
    few = build_dataset(["llava"], root, concatenate=3, max_images=2)
    assert max(len(conversation.images) for conversation in few) == 2
    assert few.records_per_dataset["llava"] == 45
    assert few.record_counts["llava"].left_out == {"more than 2 images (--max_num_image_per_sample)": 15}


def test_epochs_join_other_records_and_repeat(write_root: WriteRoot, record: MakeRecord) -> None:
    root = write_root([record(number) for number in range(60)])
    dataset = build_dataset(["llava"], root, concatenate=3)
    epochs = []
    for epoch in (0, 1, 2, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(order(dataset))
    assert epochs[0] == epochs[4] and epochs[1] == epochs[3]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({len(each) for each in epochs}) == 1


def test_sample_counts(write_root: WriteRoot, record: MakeRecord, caplog: pytest.LogCaptureFixture) -> None:
    root = write_root([record(n) for n in range(20)], [], [record(n) for n in range(20)])
    names = ["llava", "llava_dial"]
    assert len(build_dataset(names, root, samples="all")) == 40
    assert len(build_dataset(names, root, samples=["all"])) == 40
    assert len(build_dataset(names, root, samples="7")) == 14
    some = build_dataset(names, root, samples=["3", "all"])
    assert Counter(source.split("/")[1] for source in order(some))["detail_23k.json#0"] <= 1
    assert len(some) == 23
    assert len(build_dataset(names, root, samples=[500, 1])) == 21
    assert "llava has 20 records, fewer than the 500 asked for" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": [1, 2, 3]}, "--dataset_samples has 3 values for 2 datasets"),
        ({"concatenate": [1, 2, 3]}, "--dataset_concatenate_samples has 3 values for 2 datasets"),
        ({"concatenate": 0}, "--dataset_concatenate_samples is 0"),
        ({"samples": "some"}, "--dataset_samples is 'some' for llava"),
        ({"weights": [1, 2, 3]}, "--dataset_weights has 3 values for 2 datasets"),
        ({"weights": [1, 0]}, "--dataset_weights is 0.0; it has to be above 0"),
        ({"weights": float("nan")}, "--dataset_weights is nan"),
    ],
)
def test_values_that_do_not_fit(
    write_root: WriteRoot, record: MakeRecord, arguments: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(["llava", "llava_dial"], write_root([record(0)]), **arguments)


def test_weights_say_how_often_a_record_comes(write_root: WriteRoot, record: MakeRecord) -> None:
    root = write_root([record(n) for n in range(20)], [], [record(n, pictures=n % 3) for n in range(21)])
    dataset = build_dataset(["llava", "llava_dial"], root, concatenate=2, weights=[0.25, 2])
    lengths, times = set(), Counter()
    for epoch in range(4):
        dataset.set_epoch(epoch)
        lengths.add(len(dataset))
        now = records_in(dataset)
        times.update(now)
        assert Counter(name.split("#")[0] for name in now) == {
            "llava/detail_23k.json": 5,
            "llava/conversation_58k.json": 42,
        }
    assert len(lengths) == 1
    assert {name: times[name] for name in sources("detail_23k", range(20))} == dict.fromkeys(
        sources("detail_23k", range(20)), 1
    )
    assert {times[name] for name in sources("conversation_58k", range(21))} == {8}


def test_held_out_records_come_once_whatever_their_weight(write_root: WriteRoot, record: MakeRecord) -> None:
    root = write_root([record(n) for n in range(20)])
    train, held_out = split_dataset(build_dataset(["llava"], root, weights=3), 0.8)
    assert len(train) == 48 and len(held_out) == 4


def test_order_depends_on_the_seed_alone_and_no_global_generator_is_touched(
    write_root: WriteRoot, record: MakeRecord
) -> None:
    # In 2023 rank 0 alone drew random numbers while it prepared the data, so ranks shuffled differently.
    root = write_root([record(number) for number in range(30)])
    orders = []
    for state in (0, 1):
        random.seed(state), np.random.seed(state), torch.manual_seed(state)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        train, held_out = split_dataset(build_dataset(["llava"], root, concatenate=3, seed=5), 0.8, seed=5)
        train.set_epoch(1)
        orders.append((order(train), order(held_out)))
        assert before == (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )
    assert orders[0] == orders[1]
    assert orders[0] != (order(build_dataset(["llava"], root, concatenate=3, seed=6)), [])


@pytest.mark.parametrize("seed", range(5))
def test_a_split_loses_nothing_and_shares_no_picture(
    write_root: WriteRoot, record: MakeRecord, seed: int
) -> None:
    twice = [record(number % 40) for number in range(80)]  # each picture in two records
    root = write_root(twice)
    dataset = build_dataset(["llava"], root, concatenate=3)
    train, held_out = split_dataset(dataset, 0.9, seed)
    assert sorted(records_in(train) + records_in(held_out)) == records_in(dataset)
    shown = [
        {image.name for conversation in part for image in conversation.images} for part in (train, held_out)
    ]
    assert not shown[0] & shown[1]
    assert held_out.records_per_dataset["llava"] == 8


@pytest.mark.parametrize(
    ("size", "ratio", "expected"), [(10, 1.0, 0), (1, 0.5, 0), (2, 0.9, 1), (3, 0.01, 2)]
)
def test_small_splits_keep_something_to_train_on(
    write_root: WriteRoot, record: MakeRecord, size: int, ratio: float, expected: int
) -> None:
    train, held_out = split_dataset(
        build_dataset(["llava"], write_root([record(n) for n in range(size)])), ratio
    )
    assert (
        held_out.records_per_dataset["llava"] == expected
        and train.records_per_dataset["llava"] == size - expected
    )
