"""Packed rows: the same tokens as unpacked, positions that restart, the same rows for everybody."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from utils.data import Collator, EncodedDataset, build_dataset
from utils.data.batching.packing import PackedDataset
from utils.data.mixing.mixture import Mixture
from utils.model.processing_visual_chat import VisualChatProcessor

LENGTH, IMAGES = 700, 8


@pytest.fixture
def mixture(write_root: Callable[..., Path], record: Callable[..., dict]) -> Mixture:
    dialogues = [record(number, rounds=1 + number % 4, pictures=1 + number % 2) for number in range(40)]
    return build_dataset(["llava_dial"], write_root(dialogues=dialogues), concatenate=2, max_images=4)


def rows_of(
    mixture: Mixture, processor: VisualChatProcessor, length: int = LENGTH, **budget: int
) -> PackedDataset:
    conversations = EncodedDataset(mixture, processor, length, on_bad="skip")
    return PackedDataset(conversations, length, budget.get("images", IMAGES), seed=5)


def parts(row: object) -> list[list[int]]:
    """The ids of each conversation in a row."""
    return [ids.tolist() for ids in np.split(row.input_ids, np.flatnonzero(row.position_ids == 0)[1:])]


@pytest.mark.parametrize("epoch", [0, 1])
def test_rows_hold_all_conversations_once(
    processor: VisualChatProcessor, mixture: Mixture, epoch: int
) -> None:
    packed = rows_of(mixture, processor)
    packed.reserve(2)
    packed.set_epoch(epoch)
    rows = [packed[number] for number in range(len(packed))]
    rows = [row for row in rows if (row.labels >= 0).any()]
    mixture.set_epoch(epoch)
    alone = EncodedDataset(mixture, processor, LENGTH)
    expected = [alone[index].input_ids.tolist() for index in range(len(alone))]
    assert sorted(ids for row in rows for ids in parts(row)) == sorted(expected)
    assert len(rows) < len(expected) / 2
    for row in rows:
        images = row.mm_token_type_ids.sum() // processor.image_seq_length
        assert len(row.input_ids) <= LENGTH and images <= IMAGES
        assert row.pixel_values.shape[0] == images
        assert np.array_equal(row.labels[row.labels >= 0], row.input_ids[row.labels >= 0])
        for ids, positions in zip(
            parts(row), np.split(row.position_ids, np.flatnonzero(row.position_ids == 0)[1:]), strict=True
        ):
            assert positions.tolist() == list(range(len(ids)))


def test_epochs_pack_differently_and_repeat(processor: VisualChatProcessor, mixture: Mixture) -> None:
    def seen(packed: PackedDataset, epoch: int) -> list[list[int]]:
        packed.set_epoch(epoch)
        return [packed[number].input_ids.tolist() for number in range(len(packed))]

    first, second = rows_of(mixture, processor), rows_of(mixture, processor)
    for packed in (first, second):
        packed.reserve(3)
    zero, two = seen(first, 0), seen(first, 2)
    assert len(zero) == len(two) and zero != two
    assert seen(second, 2) == two and seen(second, 0) == zero


def test_a_damaged_picture_costs_its_conversation_alone(
    processor: VisualChatProcessor, write_root: Callable[..., Path], record: Callable[..., dict]
) -> None:
    root = write_root([record(number) for number in range(12)])
    sound = rows_of(build_dataset(["llava"], root), processor)
    expected = [ids for number in range(len(sound)) for ids in parts(sound[number])]
    (root / "coco/train2017/000007-0.png").write_bytes(b"no picture")
    packed = rows_of(build_dataset(["llava"], root), processor)
    rows = [packed[number] for number in range(len(packed))]
    [bad] = [found for row in rows for found in row.bad]
    assert bad.place.index == 7 and len(rows) == len(sound)
    learned = [
        ids for row in rows for ids in parts(row) if "Question 7," not in processor.tokenizer.decode(ids)
    ]
    assert sum(ids in expected for ids in learned) == 11


def test_turns_that_come_in_for_a_damaged_record_do_not_burst_the_row(
    processor: VisualChatProcessor, write_root: Callable[..., Path], record: Callable[..., dict]
) -> None:
    """Two joined records of which the second is cut; without the first it is as long as both were."""
    root = write_root(dialogues=[record(1, rounds=2), record(2, rounds=6)])
    mixture = build_dataset(
        ["llava_dial"],
        root,
        concatenate=2,
        seed=next(
            seed
            for seed in range(99)
            if len(build_dataset(["llava_dial"], root, concatenate=2, seed=seed)) == 1
        ),
    )
    first = mixture.records_of(0)[0].place.index
    whole = EncodedDataset(mixture, processor, 10_000, on_bad="skip")[0]
    length = int(whole.turn_ends[2 if first == 0 else 6])
    number = (1, 2)[first]
    packed = rows_of(mixture, processor, length)
    (root / f"coco/train2017/{number:06d}-0.png").write_bytes(b"no picture")
    row = packed[0]
    assert len(row.bad) == 1 and len(row.input_ids) <= length
    assert row.pixel_values is None or row.pixel_values.shape[0] * 5 == row.mm_token_type_ids.sum()


def test_workers_give_the_same_batches(processor: VisualChatProcessor, mixture: Mixture) -> None:
    packed = rows_of(mixture, processor)
    alone, shared = (list(DataLoader(packed, 2, num_workers=n, collate_fn=Collator(0))) for n in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert one.inputs.keys() == other.inputs.keys() and "attention_mask" not in one.inputs
        assert one.origins == other.origins and one.images == other.images
        torch.testing.assert_close(one.inputs, other.inputs, rtol=0, atol=0)


def test_pixels_are_in_the_order_of_their_tokens(processor: VisualChatProcessor, mixture: Mixture) -> None:
    packed = rows_of(mixture, processor)
    alone = EncodedDataset(mixture, processor, LENGTH, on_bad="skip")
    by_ids = {tuple(alone[index].input_ids): alone[index].pixel_values for index in range(len(alone))}
    for number in range(len(packed)):
        row = packed[number]
        assert torch.equal(row.pixel_values, torch.cat([by_ids[tuple(ids)] for ids in parts(row)]))
