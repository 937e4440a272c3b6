"""Padding to a batch: worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from utils.data import Collator, Sample


def encoded(ids: list[int], pixels: torch.Tensor | None = None) -> Sample:
    array = np.array(ids)
    return Sample(
        input_ids=array,
        labels=np.where(array > 5, array, -100),
        mm_token_type_ids=(array == 5).astype(np.int64),
        turn_ends=np.array([len(ids)]),
        pixel_values=pixels,
    )


RED, BLUE = torch.full((1, 3, 2, 2), 1.0), torch.full((2, 3, 2, 2), 2.0)


def test_padding_on_the_right() -> None:
    batch = Collator(pad_token_id=0, pad_to_multiple_of=4)(
        [encoded([1, 5, 7], RED), encoded([1, 5, 5, 8, 9], BLUE)]
    ).inputs
    counts = batch.pop("image_tokens"), batch.pop("supervised_tokens")
    assert counts == (3, 3)
    assert {name: tensor.tolist() for name, tensor in batch.items() if name != "pixel_values"} == {
        "input_ids": [[1, 5, 7, 0, 0, 0, 0, 0], [1, 5, 5, 8, 9, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]],
        "mm_token_type_ids": [[0, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]],
        "labels": [[-100, -100, 7, -100, -100, -100, -100, -100], [-100, -100, -100, 8, 9, -100, -100, -100]],
    }
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]
    assert all(tensor.dtype == torch.int64 for name, tensor in batch.items() if name != "pixel_values")


def test_padding_on_the_left() -> None:
    batch = Collator(pad_token_id=3, padding_side="left", pad_to_multiple_of=1)(
        [encoded([1, 7]), encoded([1, 5, 7])]
    ).inputs
    assert batch["input_ids"].tolist() == [[3, 1, 7], [1, 5, 7]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, -100, 7]]


@pytest.mark.parametrize(("lengths", "width"), [((8, 3), 8), ((9, 3), 16), ((1,), 8)])
def test_widths_are_multiples(lengths: tuple[int, ...], width: int) -> None:
    assert Collator(0)([encoded([1] * length) for length in lengths]).inputs["input_ids"].shape[1] == width


def test_conversations_without_images_stay_beside_those_with() -> None:  # in 2023 they were dropped silently
    batch = Collator(0)([encoded([1, 7]), encoded([5, 7], RED)])
    assert (
        batch.inputs["input_ids"].shape[0] == 2 and batch.inputs["pixel_values"].shape[0] == batch.images == 1
    )
    assert "pixel_values" not in Collator(0)([encoded([1, 7])]).inputs


def test_features_stand_in_the_place_of_pixels_in_batches_without_images_too() -> None:
    def sample(ids: list[int], features: torch.Tensor) -> Sample:
        return replace(encoded(ids), image_features=features)

    none, some = torch.empty(0), torch.arange(12.0, dtype=torch.bfloat16).view(2, 3, 2)
    for samples, expected in (
        ([sample([1, 7], none), sample([5, 5, 7], some), sample([5, 7], some[:1])], some[[0, 1, 0]]),
        ([sample([1, 7], none), sample([1, 7], none)], none),
    ):
        batch = Collator(0)(samples)
        found = batch.inputs["mm_encoder_outputs"]["image"]
        assert "pixel_values" not in batch.inputs and found.pooler_output is None
        torch.testing.assert_close(found.last_hidden_state, expected, rtol=0, atol=0)
        assert batch.images == len(expected)
