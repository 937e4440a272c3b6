"""What is reused of a dialogue that was read; worked out by hand over one layer of made-up keys."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat.opened_images import OpenedImage
from chat.prefix_cache import PrefixCache
from chat.reading import WholeDialogue

IMAGE = 99  # the id of image tokens; two of them stand for an image
A, B, C = (OpenedImage(name.encode(), name) for name in "abc")
IDS = [1, 2, IMAGE, IMAGE, 3, IMAGE, IMAGE, 4, 5]


def new() -> WholeDialogue:
    return WholeDialogue(model=None, processor=SimpleNamespace(image_seq_length=2))


def filled(tokens: int) -> WholeDialogue:
    reading = new()
    states = torch.arange(tokens, dtype=torch.float32).reshape(1, 1, tokens, 1)
    reading._cache.update(states, states, layer_idx=0)
    return reading


@pytest.mark.parametrize(
    "ids, images, tokens, whole",
    [
        ([*IDS, 6, 7], (A, B), 9, 2),  # longer
        (IDS, (A, B), 8, 2),  # the same: the last token is computed again
        ([1, 2, 7, 8], (), 2, 0),  # the first image is gone
        ([1, 7], (), 1, 0),
        ([7, 2], (), 0, 0),
        ([*IDS, 6], (A, C), 5, 1),  # another second image
        ([*IDS, 6], (C, B), 2, 0),  # another first image
        ([*IDS[:5], 8, *IDS[5:]], (A, B), 5, 1),  # text between the images
        ([*IDS, IMAGE, IMAGE, 6], (A, B, C), 9, 2),  # one more
        ([1, 2, IMAGE, IMAGE, 3], (A,), 4, 1),  # shorter
        ([1, 2, IMAGE, IMAGE], (A,), 2, 0),  # an image is never taken in part
    ],
)
def test_the_longest_prefix_with_the_same_images(ids, images, tokens, whole):
    prefix_cache = PrefixCache(new)
    known = np.array([*IDS, 77])  # the last token was chosen, not read
    prefix_cache.put(filled(len(IDS)), known, known == IMAGE, (A, B))
    prefix = prefix_cache.take(np.array(ids), np.array(ids) == IMAGE, images)
    assert (prefix.tokens, prefix.images) == (tokens, whole)
    assert prefix.reading.covered(np.array(ids) == IMAGE) == tokens
    if tokens:
        assert prefix.reading._cache.layers[0].keys.flatten().tolist() == list(range(tokens))
    again = prefix_cache.take(np.array(ids), np.array(ids) == IMAGE, images)
    assert (again.tokens, again.images) == (0, 0)  # it was handed out


def test_equal_images_opened_twice_are_the_same():
    prefix_cache = PrefixCache(new)
    known = np.array(IDS)
    prefix_cache.put(filled(len(IDS)), known, known == IMAGE, (A, B))
    again = tuple(OpenedImage(image.source, "another name") for image in (A, B))
    assert prefix_cache.take(known, known == IMAGE, again).images == 2


def test_a_reading_interrupted_between_two_layers_is_forgotten():
    reading = filled(3)
    states = torch.zeros(1, 1, 2, 1)
    reading._cache.update(states, states, layer_idx=1)
    prefix_cache = PrefixCache(new)
    prefix_cache.put(reading, np.array([1, 2, 3]), np.zeros(3, bool), ())
    assert prefix_cache.take(np.array([1, 2, 3, 4]), np.zeros(4, bool), ()).tokens == 0
