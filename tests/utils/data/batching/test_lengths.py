"""Lengths: those of what is read later, counted once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from utils.data import EncodedDataset, build_dataset
from utils.data import workers as workers_module
from utils.data.batching import packing
from utils.data.batching.packing import measure
from utils.data.mixing.mixture import Mixture
from utils.model.processing_visual_chat import VisualChatProcessor


@pytest.fixture
def mixture(write_root: Callable[..., Path], record: Callable[..., dict]) -> Mixture:
    dialogues = [record(number, rounds=1 + number % 4, pictures=1 + number % 2) for number in range(20)]
    return build_dataset(["llava_dial"], write_root(dialogues=dialogues), concatenate=3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 3])
def test_they_are_those_of_what_is_read(
    processor: VisualChatProcessor,
    mixture: Mixture,
    epoch: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_WORTH_WORKERS", 1 if workers else 10**9)
    monkeypatch.setattr(workers_module, "cores", lambda: workers)
    dataset = EncodedDataset(mixture, processor, max_seq_len=150, on_bad="skip")
    measured = measure(dataset.without_pixels(epoch))
    assert dataset.cut.turns == 0  # counting is not reading
    dataset.set_epoch(epoch)
    rows = [dataset[index] for index in range(len(dataset))]
    assert measured.tokens.tolist() == [len(row.input_ids) for row in rows]
    assert measured.images.tolist() == [len(row.pixel_values) for row in rows]
    assert dataset.cut.turns > 0


def test_they_are_counted_once(
    processor: VisualChatProcessor, mixture: Mixture, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    count = packing._count
    monkeypatch.setattr(packing, "_count", lambda sketch: counted.append(1) or count(sketch))

    def dataset(length: int = 150) -> EncodedDataset:
        return EncodedDataset(mixture, processor, length, on_bad="skip")

    first = measure(dataset().without_pixels(0))
    again = measure(dataset().without_pixels(0))
    assert len(counted) == 1 and np.array_equal(first.tokens, again.tokens)
    measure(dataset().without_pixels(1))
    measure(dataset(200).without_pixels(0))
    assert len(counted) == 3
    assert len(list((cache / "lengths").glob("*/*/lengths.npz"))) == 3


def test_fingerprints_tell_texts_apart(processor: VisualChatProcessor, mixture: Mixture) -> None:
    other = VisualChatProcessor(
        processor.image_processor,
        processor.tokenizer,
        processor.image_seq_length,
        chat_template=processor.chat_template.replace("Question", "Ask"),
    )
    prints = {processor.text_fingerprint, other.text_fingerprint}
    processor.tokenizer(["a", "b c"], padding=True)
    assert len(prints) == 2 and processor.text_fingerprint in prints
    first = mixture.fingerprint
    mixture.set_epoch(1)
    second = mixture.fingerprint
    mixture.set_epoch(0)
    assert mixture.fingerprint == first != second
