"""Each supervised token of a batch belongs to the records that its conversation was joined of."""

from collections.abc import Callable
from pathlib import Path

import pytest

from utils.data import Collator, EncodedDataset, build_dataset
from utils.data.batching.packing import PackedDataset
from utils.model.processing_visual_chat import VisualChatProcessor


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
def test_origins_follow_the_supervised_tokens(
    processor: VisualChatProcessor,
    write_root: Callable[..., Path],
    record: Callable[..., dict],
    packing: bool,
    damaged: bool,
) -> None:
    """Answers say their record's number: the origin of an answer's tokens has to hold that record."""
    detail = [record(number) for number in range(10)]
    dialogues = [record(number, rounds=1 + number % 4) for number in range(10, 25)]
    root = write_root(detail=detail, dialogues=dialogues)
    if damaged:
        for number in (3, 17):
            (root / "coco" / "train2017" / f"{number:06d}-0.png").write_bytes(b"no picture")
    mixture = build_dataset(["llava", "llava_dial"], root, concatenate=3)
    rows = EncodedDataset(mixture, processor, 500, on_bad="skip")
    if packing:
        rows = PackedDataset(rows, 700, max_images=8, seed=1)
    batch = Collator(0)([rows[index] for index in range(len(rows))])
    labels = batch.inputs["labels"]
    assert sum(origin.supervised for origin in batch.origins) == labels[:, 1:].ge(0).sum()
    taught = labels[labels >= 0].tolist()
    seen = set()
    for origin in batch.origins:
        ids, taught = taught[: origin.supervised], taught[origin.supervised :]
        text = processor.tokenizer.decode(ids)
        for place in origin.places:
            number = place.index + (10 if origin.dataset == "llava_dial" else 0)
            assert place.dataset == origin.dataset and f"Answer {number}, round 0." in text
            seen.add(number)
        assert text.count("round 0.") == len(origin.places)
    assert seen == set(range(25)) - ({3, 17} if damaged else set())
