"""A mark that is gone at the encoder's size is learnt with tiles, and cannot be without them."""

import numpy as np
import PIL.Image
import pytest
import torch

from utils.conversation import Conversation, Image, Turn
from utils.data import Collator, EncodedDataset
from utils.model import build_visual_chat
from utils.model.building import build_processor

SIDE, TILES = 48, 9  # pixels; the encoder takes 16
GREY, CONTRAST, MARK, INSET = 128, 120, 10, 1
ANSWERS = ("green", "blue")
STEPS, BATCH = 80, 16


def marked(rng: np.random.Generator, kind: int) -> PIL.Image.Image:
    """A grey image with fine stripes in one of its corners: across (0) or upright (1), and faint at their ends."""
    window = np.sin(np.pi * (np.arange(MARK) + 0.5) / MARK) ** 2
    stripes = CONTRAST * window * np.where(np.arange(MARK) % 2, 1, -1)
    mark = np.outer(stripes, window) if kind == 0 else np.outer(window, stripes)
    pixels = np.full((SIDE, SIDE), float(GREY))
    top, left = rng.choice([INSET, SIDE - MARK - INSET], 2)
    pixels[top : top + MARK, left : left + MARK] += mark
    return PIL.Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB")


def conversations(seed: int, count: int) -> list[Conversation]:
    """Half of each kind; each corner that has the one has the other too."""
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, number // 2])
        image = Image(marked(rng, number % 2))
        found.append(Conversation((Turn("What colour is it?", ANSWERS[number % 2], (image,)),)))
    return found


def share_right(world, tiles: int) -> float:
    """Train on new images in each step; how many of others are answered right."""
    torch.manual_seed(0)
    model, processor = build_visual_chat(
        str(world.language_model),
        str(world.vision_model),
        dtype=torch.float32,
        tiles=tiles,
        train=("embedding", "projector", "decoder"),
    )
    collate = Collator(processor.tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)

    def batch(seed: int, count: int) -> dict:
        rows = EncodedDataset(conversations(seed, count), processor, max_seq_len=512)
        return collate([rows[number] for number in range(count)]).inputs

    for step in range(STEPS):
        loss = model(**batch(step, BATCH)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    asked = batch(STEPS, 32)
    labels = asked.pop("labels")[:, 1:]
    with torch.inference_mode():
        logits = model(**asked).logits[:, :-1]
    right = (logits.argmax(dim=-1) == labels) | (labels < 0)
    return right.all(dim=1).float().mean().item()


@pytest.mark.slow
def test_small_print_is_read_with_tiles_alone(world) -> None:
    assert share_right(world, 1) <= 0.5  # of two answers
    assert share_right(world, TILES) >= 0.95


def test_the_mark_is_gone_at_the_encoders_size(world) -> None:
    """Across or upright, the image as a whole is the same to the encoder."""
    processor = build_processor(str(world.language_model), str(world.vision_model), tiles=TILES)
    for seed in range(8):
        across, upright = (Image(marked(np.random.default_rng(seed), kind)) for kind in (0, 1))
        one, other = (processor.pixel_values(processor.views([each])) for each in (across, upright))
        assert one.shape == (1 + TILES, 3, 16, 16)
        assert torch.equal(one[0], other[0])
        differing = (one[1:] != other[1:]).flatten(1).any(dim=1)
        assert differing.sum() == 1 and differing.nonzero()[0, 0] in (0, 2, 6, 8)  # the tiles at the corners
