"""Tiles in samples, lengths and packed rows: each counts as an image."""

import io
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from utils.conversation import Conversation, Image, Turn
from utils.data import EncodedDataset, build_dataset
from utils.data.batching.packing import PackedDataset, measure
from utils.data.batching.vision_feature_cache import image_key
from utils.data.spec import DataError
from utils.model.processing_visual_chat import VisualChatProcessor

VIEWS = {(16, 12): 1, (32, 16): 3, (40, 40): 5, (16, 44): 4}  # of 16 x 16 pixels, at most 4 tiles
LONGEST = 1000


@pytest.fixture
def tiled(processor: VisualChatProcessor) -> VisualChatProcessor:
    return VisualChatProcessor(processor.image_processor, processor.tokenizer, image_seq_length=5, tiles=4)


@pytest.fixture
def conversations() -> list[Conversation]:
    images = [Image(PIL.Image.effect_noise(size, 60)) for size in VIEWS]
    alone = [Conversation((Turn("What?", "red", (image,)),)) for image in images]
    return [
        *alone,
        Conversation((Turn("Which?", "blue", tuple(images[:2])), Turn("And?", "red", (images[2],)))),
    ]


COUNTS = [*VIEWS.values(), 1 + 3 + 5]


def test_samples_and_lengths_count_every_view(
    tiled: VisualChatProcessor, conversations: list[Conversation]
) -> None:
    dataset = EncodedDataset(conversations, tiled, LONGEST)
    samples = [dataset[number] for number in range(len(dataset))]
    assert [len(sample.pixel_values) for sample in samples] == COUNTS
    assert [int(sample.mm_token_type_ids.sum()) for sample in samples] == [5 * views for views in COUNTS]
    lengths = measure(dataset)
    assert lengths.images.tolist() == COUNTS
    assert lengths.tokens.tolist() == [len(sample.input_ids) for sample in samples]


def test_the_images_of_a_row_are_those_that_are_there(
    tiled: VisualChatProcessor, conversations: list[Conversation]
) -> None:
    dataset = EncodedDataset(conversations, tiled, LONGEST)
    assert dataset.mean_images == sum(COUNTS) / len(COUNTS)
    rows = PackedDataset(dataset, LONGEST, 9, seed=0)
    assert rows.mean_images == sum(COUNTS) / len(rows)
    assert EncodedDataset(conversations[:1] * 1000, tiled, LONGEST).mean_images == COUNTS[0]


def test_a_packed_row_holds_no_more_views_than_its_budget(
    tiled: VisualChatProcessor, conversations: list[Conversation]
) -> None:
    rows = PackedDataset(EncodedDataset(conversations, tiled, LONGEST), LONGEST, 9, seed=0)
    views = [len(rows[number].pixel_values) for number in range(len(rows))]
    assert sum(views) == sum(COUNTS) and max(views) == 9
    with pytest.raises(DataError, match="has 9 images, more than a row may hold"):
        PackedDataset(EncodedDataset(conversations, tiled, LONGEST), LONGEST, 8, seed=0)


def test_each_view_has_a_key_of_its_own_that_follows_from_its_content(tiled: VisualChatProcessor) -> None:
    image, same = (Image(PIL.Image.new("RGB", (40, 40), "red"), name) for name in ("one", "other"))
    keys = [image_key(view) for view in tiled.views([image])]
    assert len(set(keys)) == 5 and keys[0] == image_key(image)
    assert keys == [image_key(view) for view in tiled.views([same])]
    tiled.tiles = 3
    assert not set(keys[1:]) & {image_key(view) for view in tiled.views([image])[1:]}


def test_lengths_are_counted_anew_when_an_image_has_another_size(
    tiled: VisualChatProcessor, write_root: Callable[..., Path], record: Callable[..., dict]
) -> None:
    root = write_root(dialogues=[record(number) for number in range(4)])

    def images() -> list[int]:
        dataset = EncodedDataset(build_dataset(["llava_dial"], root), tiled, LONGEST, on_bad="skip")
        return [*measure(dataset.without_pixels(0)).images, *measure(dataset.without_pixels(1)).images]

    assert images() == [1] * 8
    for path in sorted(root.rglob("*.png"))[:2]:
        path.write_bytes(_noise_png(40, 40))  # in place: no folder changes
    assert sorted(images()) == [1] * 4 + [5] * 4
    sorted(root.rglob("*.png"))[0].write_bytes(b"damaged")
    assert sorted(images()) == [0] * 2 + [1] * 4 + [5] * 2


def _noise_png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.effect_noise((width, height), 60).save(file, "PNG")
    return file.getvalue()
