"""A bad record costs its own place and nothing else: never another record, never a row."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from utils.data import IGNORED_LABEL, BadRecords, Collator, EncodedDataset, build_dataset
from utils.model.processing_visual_chat import VisualChatProcessor

MakeRecord = Callable[..., dict]
WriteRoot = Callable[..., Path]


def damage(root: Path, numbers: list[int]) -> None:
    for number in numbers:
        (root / "coco" / "train2017" / f"{number:06d}-0.png").write_bytes(b"no picture")


@pytest.fixture
def make(processor: VisualChatProcessor) -> Callable[..., EncodedDataset]:
    def tolerant(root: Path, concatenate: int = 1, max_seq_len: int = 1000) -> EncodedDataset:
        conversations = build_dataset(["llava_dial"], root, concatenate=concatenate, bad=BadRecords(1))
        return EncodedDataset(conversations, processor, max_seq_len, on_bad="skip")

    return tolerant


def learned_texts(dataset: EncodedDataset, processor: VisualChatProcessor) -> list[str]:
    texts = []
    for index in range(len(dataset)):
        row = dataset[index]
        texts.append(processor.tokenizer.decode(row.labels[row.labels != IGNORED_LABEL]))
    return texts


def test_a_bad_record_alone_leaves_a_row_in_which_nothing_is_learned(
    make, processor: VisualChatProcessor, write_root: WriteRoot, record: MakeRecord
) -> None:
    root = write_root([], [], [record(number) for number in range(5)])
    whole = learned_texts(make(root), processor)
    damage(root, [2])
    dataset = make(root)
    [place] = [index for index, text in enumerate(whole) if "Answer 2" in text]
    assert learned_texts(dataset, processor) == [*whole[:place], "", *whole[place + 1 :]]
    row = dataset[place]
    assert (row.labels == IGNORED_LABEL).all() and row.pixel_values is None and len(row.input_ids) == 8
    [found] = row.bad
    assert str(found.place) == "llava/conversation_58k.json#2" and found.place.dataset == "llava_dial"
    assert found.reason.endswith("000002-0.png: not an image, or of a format that Pillow does not read")
    assert not any(dataset[index].bad for index in range(5) if index != place)


def test_the_others_of_a_group_are_learned_all_the_same(
    make, processor: VisualChatProcessor, write_root: WriteRoot, record: MakeRecord
) -> None:
    root = write_root([], [], [record(number) for number in range(30)])
    damage(root, [4, 11, 12])
    dataset = make(root, concatenate=3)
    text = " ".join(learned_texts(dataset, processor))
    for number in range(30):
        assert text.count(f"Answer {number}, round 0.") == (number not in (4, 11, 12))
    found = [found for index in range(len(dataset)) for found in dataset[index].bad]
    assert sorted(each.place.index for each in found) == [4, 11, 12]


def test_batches_with_workers_carry_what_was_found_and_stay_tensors(
    make, write_root: WriteRoot, record: MakeRecord
) -> None:
    root = write_root([], [], [record(number) for number in range(8)])
    damage(root, [0, 1, 2, 3, 6])
    batches = list(DataLoader(make(root), 4, num_workers=1, collate_fn=Collator(0), pin_memory=False))
    found = [[found.place.index for found in batch.bad] for batch in batches]
    assert sorted(number for batch in found for number in batch) == [0, 1, 2, 3, 6]
    origins = [origin for batch in batches for origin in batch.origins]
    assert sorted(place.index for origin in origins for place in origin.places) == [4, 5, 7]
    for batch, bad in zip(batches, found, strict=True):
        inputs = batch.inputs
        numbers = {name: inputs.pop(name) for name in ("image_tokens", "supervised_tokens")}
        assert all(isinstance(value, torch.Tensor) for value in inputs.values())
        assert numbers["image_tokens"] == (inputs["mm_token_type_ids"] == 1).sum()
        assert numbers["supervised_tokens"] == (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
        assert (inputs["labels"] == IGNORED_LABEL).all(dim=1).sum() == len(bad)
        assert len(inputs.get("pixel_values", ())) == batch.images == 4 - len(bad)
