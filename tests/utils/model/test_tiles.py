"""Tiles: a large image is also shown in parts, which count like images wherever tokens and images are counted."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoProcessor, BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from utils.conversation import Conversation, Image, ImageError, Turn
from utils.model.image_preprocessing import choose_grid, preprocess, tiles_of
from utils.model.processing_visual_chat import VisualChatProcessor

SIDE = 16
COLOURS = ["red", "lime", "blue", "white"]
SMALL = Image(PIL.Image.new("RGB", (16, 12), "yellow"))


def of_colours(columns: int, rows: int, side: int = SIDE) -> PIL.Image.Image:
    """Squares of `side` pixels, each of one colour, in turn row by row."""
    picture = PIL.Image.new("RGB", (columns * side, rows * side))
    for place in range(columns * rows):
        left, top = place % columns * side, place // columns * side
        picture.paste(COLOURS[place % len(COLOURS)], (left, top, left + side, top + side))
    return picture


WIDE = Image(of_colours(2, 1))
SQUARE = Image(of_colours(2, 2))


@pytest.fixture(scope="module")
def tiled(processor: VisualChatProcessor) -> Callable[..., VisualChatProcessor]:
    def make(tiles: int, like: VisualChatProcessor = processor, **changes) -> VisualChatProcessor:
        settings = dict(image_processor=like.image_processor, tokenizer=like.tokenizer, image_seq_length=5)
        return VisualChatProcessor(**{**settings, "tiles": tiles, **changes})

    return make


@pytest.mark.parametrize(
    "size, most, grid",
    [
        ((224, 224), 12, (1, 1)),  # no larger than what is shown
        ((336, 336), 12, (2, 2)),
        ((336, 335), 12, (2, 1)),
        ((440, 440), 3, (1, 1)),  # 2 x 1 would scale its height down as much as the whole does
        ((672, 672), 8, (2, 2)),  # 3 x 2 is no larger in height
        ((5000, 5000), 12, (3, 3)),
        ((640, 480), 6, (3, 2)),  # 672 for 640, and 448 for 480
        ((640, 480), 4, (2, 2)),  # 448 for 640; 3 x 1 has 224 for 480
        ((700, 480), 4, (2, 2)),  # though 2 x 1 is nearer to its aspect ratio
        ((1010, 100), 12, (5, 1)),
    ],
)
def test_the_grid_scales_an_image_down_least(size: tuple[int, int], most: int, grid: tuple[int, int]) -> None:
    assert choose_grid(size, (224, 224), most) == grid


def test_a_grid_of_oblong_tiles_counts_in_their_shape() -> None:
    assert choose_grid((600, 400), (400, 300), 4) == (2, 1)  # height 400, width 300
    assert choose_grid((400, 600), (400, 300), 4) == (1, 2)
    assert choose_grid((450, 600), (400, 300), 4) == (2, 2)


def test_a_large_image_is_shown_whole_and_then_in_its_tiles(tiled: Callable) -> None:
    processor = tiled(4)
    views = processor.views([WIDE, SMALL, SQUARE])
    assert [getattr(view, "name", "") for view in views][1:3] == [
        "<image of 32 x 16 pixels>, tile 1,1",
        "<image of 32 x 16 pixels>, tile 1,2",
    ]
    pixels = processor.pixel_values(views)
    assert pixels.shape == (3 + 1 + 5, 3, SIDE, SIDE)
    alone = [Image(PIL.Image.new("RGB", (SIDE, SIDE), colour)) for colour in COLOURS]
    red, lime, blue, white = preprocess(processor.image_processor, alone)
    for place, expected in [(1, red), (2, lime), (5, red), (6, lime), (7, blue), (8, white)]:
        assert torch.equal(pixels[place], expected)
    wholes = preprocess(processor.image_processor, [WIDE, SMALL, SQUARE])
    assert torch.equal(pixels[[0, 3, 4]], wholes)


def test_tokens_counted_by_hand(tiled: Callable) -> None:
    """`### Image 1: <image>` and behind it `\\nTile 1,1: <image>` for each part; five tokens for each."""
    one, four = tiled(1), tiled(4)
    conversation = Conversation((Turn("What?", "red", (WIDE, SMALL)), Turn("And?", "blue", (SQUARE,))))
    plain, found = (each.encode(conversation) for each in (one, four))
    text = four.marked(one.apply_chat_template(conversation.messages(load_images=False)), conversation.images)
    assert text == (
        "<s>You are a powerful vision-language assistant.\n\n"
        "### Image 1: <image>\nTile 1,1: <image>\nTile 1,2: <image>\n"
        "### Image 2: <image>\n"
        "### Question: What?\n### Answer: red</s>\n\n"
        "### Image 3: <image>\nTile 1,1: <image>\nTile 1,2: <image>\nTile 2,1: <image>\nTile 2,2: <image>\n"
        "### Question: And?\n### Answer: blue</s>"
    )
    tag = len(one.tokenizer("<image>\nTile 1,1: ", add_special_tokens=False).input_ids) - 1
    assert len(found.input_ids) - len(plain.input_ids) == (2 + 4) * (tag + 5)
    assert found.mm_token_type_ids.sum() == (3 + 1 + 5) * 5
    assert found.turn_ends.tolist() == [plain.turn_ends[0] + 2 * (tag + 5), len(found.input_ids)]
    learnt = [each.labels[each.labels >= 0].tolist() for each in (plain, found)]
    assert learnt[0] == learnt[1]
    assert found.pixel_values.shape[0] == 9 and plain.pixel_values.shape[0] == 3
    without = four.encode(conversation, load_images=False)
    assert without.pixel_values is None and np.array_equal(without.input_ids, found.input_ids)


def test_off_is_what_it_was_bit_for_bit(processor: VisualChatProcessor, tiled: Callable) -> None:
    conversation = Conversation((Turn("What?", "red", (WIDE, SMALL)), Turn("And?", "blue", (SQUARE,))))
    before, off = processor.encode(conversation), tiled(1).encode(conversation)
    small = Conversation((Turn("What?", "red", (SMALL,)),))
    for one, other in [(before, off), (processor.encode(small), tiled(9).encode(small))]:
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
    assert tiled(1).text_fingerprint == processor.text_fingerprint
    assert len({tiled(tiles).text_fingerprint for tiles in (1, 2, 4)}) == 3


@pytest.mark.parametrize("prompt", [True, False])
def test_every_tokenizer_and_transformers_own_call_agree(
    any_processor: VisualChatProcessor, tiled: Callable, prompt: bool
) -> None:
    processor = tiled(4, any_processor)
    noise = [PIL.Image.effect_noise(size, 60).convert("RGB") for size in [(40, 90), (16, 16), (33, 32)]]
    a, b, c = map(Image, noise)
    dialogue = Conversation((Turn("one", "1", (a, b)), Turn("two", None if prompt else "2", (c,))))
    encoded = processor.encode(dialogue)
    text = processor.apply_chat_template(dialogue.messages(load_images=False), add_generation_prompt=prompt)
    called = processor(text=text, images=noise, return_tensors="pt")
    assert called["input_ids"][0].tolist() == encoded.input_ids.tolist()
    assert called["mm_token_type_ids"][0].tolist() == encoded.mm_token_type_ids.tolist()
    assert torch.equal(called["pixel_values"], encoded.pixel_values)
    templated = processor.apply_chat_template(
        [dialogue.messages()], add_generation_prompt=prompt, tokenize=True, return_dict=True
    )
    assert templated["input_ids"][0] == encoded.input_ids.tolist()
    for number in (0, 1):  # an inference prompt is a prefix of what is trained on
        asked = processor.encode(dialogue.until_answer(number), load_images=False).input_ids
        assert np.array_equal(asked, encoded.input_ids[: len(asked)])


def test_transformers_own_call_names_what_does_not_fit(tiled: Callable) -> None:
    with pytest.raises(ValueError, match="the text has 2 <image> tokens, but 1 images were given"):
        tiled(4)(text="<image> <image>", images=WIDE.open())
    assert tiled(4)(images=WIDE.open(), return_tensors="pt")["pixel_values"].shape[0] == 3


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(),
        SiglipImageProcessor(size={"height": 224, "width": 224}),
        BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3),
        SiglipImageProcessor(size={"height": 120, "width": 200}),
    ],
    ids=["clip", "siglip", "cropped from 256", "oblong"],
)
def test_tiles_reach_the_encoder_whole(processor: BaseImageProcessor) -> None:
    """Whatever a processor scales and crops, every pixel of a grid that fits the image exactly is shown, as it is."""
    size = processor.crop_size if processor.do_center_crop else processor.size
    height, width = size["height"], size["width"]
    noise = np.random.default_rng(0).integers(0, 256, (2 * height, 3 * width, 3), dtype=np.uint8)
    tiles = tiles_of(processor, Image(PIL.Image.fromarray(noise)), 6)
    assert [(tile.row, tile.column) for tile in tiles] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    shown = preprocess(processor, tiles)
    plain = copy.deepcopy(processor)
    plain.do_resize = plain.do_center_crop = False
    parts = [
        noise[row * height :, column * width :][:height, :width] for row in range(2) for column in range(3)
    ]
    expected = plain([PIL.Image.fromarray(part) for part in parts], return_tensors="pt")["pixel_values"]
    assert torch.equal(shown, expected)
    opened = processor([tile.open() for tile in tiles], return_tensors="pt")["pixel_values"]
    assert torch.equal(opened, expected)
    for tile, alone in zip(tiles, expected, strict=True):
        assert torch.equal(preprocess(processor, [tile])[0], alone)


def test_a_jpeg_at_a_fraction_is_cut_where_the_whole_would_be(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    of_colours(4, 4, 448).save(path, quality=95)
    tiles = tiles_of(CLIPImageProcessor(), Image(path), 16)
    assert len(tiles) == 16
    means = torch.stack([torch.from_numpy(tile.pixels(1)[0]).float().mean(dim=(0, 1)) for tile in tiles])
    expected = torch.tensor([[255.0, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]).repeat(4, 1)
    assert (means - expected).abs().max() < 6


def test_a_processor_that_does_something_else_has_no_tiles(tiled: Callable) -> None:
    class Upside(CLIPImageProcessor):
        def resize(self, image, size, **kwargs):
            return super().resize(image.flip(-2), size, **kwargs)

    with pytest.raises(ValueError, match="Upside does not scale, crop and normalise images"):
        tiled(2, image_processor=Upside())
    with pytest.raises(ValueError, match="tiles is 0; give a positive number"):
        tiled(0)


def test_tiles_travel_with_the_processor(tiled: Callable, tmp_path: Path) -> None:
    processor = tiled(4)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.tiles == 4 and loaded.text_fingerprint == processor.text_fingerprint
    conversation = Conversation((Turn("What?", "red", (WIDE,)),))
    one, other = processor.encode(conversation), loaded.encode(conversation)
    assert np.array_equal(one.input_ids, other.input_ids) and torch.equal(
        one.pixel_values, other.pixel_values
    )


def test_an_image_of_unknown_size_is_named(tiled: Callable, tmp_path: Path) -> None:
    conversation = Conversation((Turn("What?", "red", (Image(tmp_path / "none.png"),)),))
    with pytest.raises(ImageError, match=r"none\.png: there is no such image file"):
        tiled(4).encode(conversation, load_images=False)
