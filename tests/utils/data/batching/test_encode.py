"""Encoding within a length: whole turns are cut, counted, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from utils.conversation import Conversation, ConversationError, Image, Turn
from utils.data import Batch, Collator, CutCount, EncodedDataset, build_dataset
from utils.model.processing_visual_chat import VisualChatProcessor

MakeRecord = Callable[..., dict]
WriteRoot = Callable[..., Path]


@pytest.fixture
def three_turns(tmp_path: Path, write_root: WriteRoot, record: MakeRecord) -> Conversation:
    folder = write_root([record(number) for number in (10, 100, 200)]) / "coco" / "train2017"
    image = [Image(folder / f"{number:06d}-0.png") for number in (10, 100, 200)]
    turns = (Turn("first?", "one", (image[0],)), Turn("second?", "two", image[1:]), Turn("third?", "three"))
    return Conversation(turns, "set.json#5")


def test_whole_turns_are_cut_from_the_end_and_counted(
    processor: VisualChatProcessor, three_turns: Conversation
) -> None:
    ends = processor.encode(three_turns).turn_ends
    for length, turns in ((ends[2] - 1, 2), (ends[1], 2), (ends[1] - 1, 1), (ends[0], 1)):
        dataset = EncodedDataset([three_turns], processor, max_seq_len=int(length))
        expected = processor.encode(Conversation(three_turns.turns[:turns]))
        encoded = dataset[0]
        assert np.array_equal(encoded.input_ids, expected.input_ids)
        assert np.array_equal(encoded.labels, expected.labels)
        assert torch.equal(encoded.pixel_values, expected.pixel_values)
        assert dataset.cut == CutCount(1, 3 - turns)


def test_images_of_cut_turns_are_not_read(processor: VisualChatProcessor) -> None:
    conversation = Conversation((Turn("q", "a"), Turn("q", "a", (Image("missing.jpg"),))), "s")
    end = processor.encode(conversation, load_images=False).turn_ends[0]
    assert EncodedDataset([conversation], processor, int(end))[0].pixel_values is None


def test_a_conversation_that_teaches_nothing_is_named(processor: VisualChatProcessor) -> None:
    with pytest.raises(ConversationError, match=r"set\.json#6: it has no answer to learn from"):
        EncodedDataset([Conversation((Turn("q"),), "set.json#6")], processor, 100)[0]


def test_workers_give_the_same_batches_and_count_what_they_cut(
    processor: VisualChatProcessor, write_root: WriteRoot, record: MakeRecord
) -> None:
    root = write_root([], [], [record(number, rounds=1 + number % 3) for number in range(12)])
    conversations = build_dataset(["llava_dial"], root, concatenate=2)
    length = int(np.median([processor.encode(each, False).turn_ends[-1] for each in conversations]))

    def batches(workers: int) -> tuple[list[Batch], CutCount]:
        dataset = EncodedDataset(conversations, processor, length)
        loader = DataLoader(dataset, 3, num_workers=workers, collate_fn=Collator(0))
        return list(loader), dataset.cut

    (alone, cut_alone), (shared, cut_shared) = batches(0), batches(2)
    assert cut_alone == cut_shared and cut_alone.turns > 0
    for one, other in zip(alone, shared, strict=True):
        one, other = one.inputs, other.inputs
        assert one.keys() == other.keys()
        torch.testing.assert_close(one, other, rtol=0, atol=0)
