"""What is reused of a dialogue that was read; worked out by hand over one layer of made-up keys."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat.generation.engine import PrefixCache
from chat.generation.reading import Prompt, WholeDialogues
from chat.images import LoadedImage

IMAGE = 99  # the id of image tokens; two of them stand for an image
A, B, C = (LoadedImage(name.encode(), name) for name in "abc")
IDS = [1, 2, IMAGE, IMAGE, 3, IMAGE, IMAGE, 4, 5]


def prompt(ids: list[int], images: tuple[LoadedImage, ...]) -> Prompt:
    return Prompt(np.array(ids), np.array(ids) == IMAGE, images)


def filled(tokens: int) -> WholeDialogues:
    reading = WholeDialogues(model=None, processor=SimpleNamespace(image_seq_length=2))
    states = torch.arange(tokens, dtype=torch.float32).reshape(1, 1, tokens, 1)
    reading._cache.update(states, states, layer_idx=0)
    reading._real = np.ones((1, tokens), bool)
    return reading


@pytest.mark.parametrize(
    "ids, images, tokens",
    [
        ([*IDS, 6, 7], (A, B), 9),  # longer
        (IDS, (A, B), 8),  # the same: the last token is computed again
        ([1, 2, 7, 8], (), 2),  # the first image is gone
        ([1, 7], (), 1),
        ([7, 2], (), 0),
        ([*IDS, 6], (A, C), 5),  # another second image
        ([*IDS, 6], (C, B), 2),  # another first image
        ([*IDS[:5], 8, *IDS[5:]], (A, B), 5),  # text between the images
        ([*IDS, IMAGE, IMAGE, 6], (A, B, C), 9),  # one more
        ([1, 2, IMAGE, IMAGE, 3], (A,), 4),  # shorter
        ([1, 2, IMAGE, IMAGE], (A,), 2),  # an image is never taken in part
    ],
)
def test_the_longest_prefix_with_the_same_images(ids, images, tokens):
    prefix_cache = PrefixCache()
    prefix_cache.put(filled(len(IDS)), prompt([*IDS, 77], (A, B)), 8)  # the last token was chosen, not read
    asked = prompt(ids, images)
    reading = prefix_cache.take(asked)
    if not tokens:
        assert reading is None
        return
    assert reading.covered(asked.is_image) == tokens
    assert reading._cache.layers[0].keys.flatten().tolist() == list(range(tokens))
    again = prefix_cache.take(asked)  # that of a dialogue that goes on was handed out
    assert again is None if tokens >= 7 else again.covered(asked.is_image) == tokens


def test_equal_images_opened_twice_are_the_same():
    prefix_cache = PrefixCache()
    prefix_cache.put(filled(len(IDS)), prompt(IDS, (A, B)), 8)
    again = prompt(IDS, tuple(LoadedImage(image.source, "another name") for image in (A, B)))
    assert prefix_cache.take(again).covered(again.is_image) == len(IDS) - 1


def test_those_that_rest_longest_are_forgotten():
    prefix_cache = PrefixCache()
    for first in (1, 2, 3):
        prefix_cache.put(filled(2), prompt([first, 5], ()), 2)
    prefix_cache.shrink(2)
    assert prefix_cache.take(prompt([1, 5, 6], ())) is None
    assert prefix_cache.take(prompt([2, 5, 6], ())).covered(np.zeros(3, bool)) == 2
    assert prefix_cache.take(prompt([2, 5, 6], ())) is None
    prefix_cache.shrink(-1)
    assert prefix_cache.take(prompt([3, 5, 6], ())) is None
