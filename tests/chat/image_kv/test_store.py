"""What the store keeps, for how long, under what, and for whom."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from chat.image_kv.encoder import CannotReuseKV, ImageKV
from chat.image_kv.store import ImageStore, image_fingerprint
from chat.image_kv.tiers import ImageKVTiers
from chat.images import LoadedImage, open_image
from chat.limits import StoreLimits
from chat.session import ChatSession
from utils.model.checkpoint import load_checkpoint, save_full

SIZE = (2 * 2 * 2 * 5 * 8 + 32) * 4
"""Bytes of an image's states here: keys and values, layers, tokens, heads, numbers of a head, bytes."""


@pytest.fixture
def images(pictures: list[Path]) -> list[LoadedImage]:
    return [open_image(picture) for picture in pictures]


@pytest.fixture
def encoder_runs(model_and_processor):
    """How many images went through the encoder in each of its runs."""
    model, _ = model_and_processor
    runs: list[int] = []
    tower = model.model.vision_tower
    hook = tower.register_forward_pre_hook(lambda module, args: runs.append(len(args[0])))
    yield runs
    hook.remove()


def same(left: ImageKV, right: ImageKV) -> bool:
    pairs = zip((*left.keys, *left.values), (*right.keys, *right.values), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_equal_images_are_computed_once_whatever_they_are_called(model_and_processor, images, encoder_runs):
    store = ImageStore(*model_and_processor)
    renamed = LoadedImage(images[0].source, "another name")
    found = store.states([images[0], images[1], renamed, images[0]])
    assert found.computed == 2 and encoder_runs == [2]
    assert found.states[0] is found.states[2] is found.states[3]
    again = store.states([images[1]])
    assert again.computed == 0 and encoder_runs == [2] and again.states[0] is found.states[1]
    statistics = store.statistics
    assert (statistics.found, statistics.encoded_images, statistics.image_tokens) == (1, 2, 10)


def test_the_least_recently_used_leaves_first(model_and_processor, images):
    store = ImageStore(*model_and_processor, StoreLimits(memory=2 * SIZE + 1))
    for number in (0, 1, 0, 2):  # 1 was used longest ago
        store.states([images[number]])
    assert store.states([images[0], images[2]]).computed == 0
    assert store.states([images[1]]).computed == 1
    assert ImageStore(*model_and_processor, StoreLimits(memory=SIZE - 1)).states(images[:3]).computed == 3


def test_from_the_device_to_memory_and_back():
    """With the device's tier in use, as where layers stand on GPUs; here it is the same memory."""
    tiers = ImageKVTiers(StoreLimits(memory=20), [torch.device("cpu")])
    tiers.device.limit = 20
    for name in "abcd":  # of 8 bytes each
        tiers.put(name, ImageKV((torch.ones(1),), (torch.ones(0),), torch.ones(1)))
    assert (list(tiers.device), list(tiers.memory)) == (["c", "d"], ["a", "b"])
    assert tiers.get("a") is not None
    assert (list(tiers.device), list(tiers.memory)) == (["d", "a"], ["b", "c"])
    tiers.put("e", ImageKV((torch.ones(1),), (torch.ones(0),), torch.ones(1)))
    assert list(tiers.memory) == ["c", "d"] and tiers.get("b") is None


def test_the_disk_outlives_the_process_and_keeps_its_limit(
    model_and_processor, images, encoder_runs, tmp_path, caplog
):
    folder = tmp_path / "images"
    computed = ImageStore(*model_and_processor, StoreLimits(folder=folder)).states(images[:2])
    limits = StoreLimits(folder=folder, disk=3 * next(folder.iterdir()).stat().st_size)
    other = ImageStore(*model_and_processor, limits)
    encoder_runs.clear()
    found = other.states(images[:2])
    assert found.computed == 0 and encoder_runs == []
    assert all(map(same, found.states, computed.states))
    for image in images[2:6]:
        other.states([image])
    files = list(folder.iterdir())
    assert len(files) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:100])  # damaged
    with caplog.at_level(logging.WARNING):
        assert ImageStore(*model_and_processor, limits).states([images[5]]).computed == 1
    assert "cannot be read" in caplog.text


def test_other_weights_or_another_preprocessing_are_something_else(build, model_and_processor, tmp_path):
    known = image_fingerprint(*model_and_processor)
    model, processor = build("mmca")
    save_full(model, processor, tmp_path)
    assert image_fingerprint(model, processor) == known
    assert image_fingerprint(*load_checkpoint(tmp_path)) == known
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.add_(1)
        model.lm_head.weight.add_(1)
    assert image_fingerprint(model, processor) == known  # images go through neither
    for part in (model.model.vision_tower, model.model.multi_modal_projector, model.model.language_model):
        weight = list(part.parameters())[-1]
        with torch.no_grad():
            before = weight.flatten()[-1].clone()
            weight.view(-1)[-1] += 0.5
            assert image_fingerprint(model, processor) != known
            weight.view(-1)[-1] = before
    assert image_fingerprint(model, processor) == known
    for choice in ("no_mlp", "none"):
        model.config.image_layers = choice
        assert image_fingerprint(model, processor) != known
    model.config.image_layers = "full"
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert image_fingerprint(model, processor) != known


def test_the_gate_changes_answers_and_nothing_that_is_stored(build, images):
    gated, processor = build("mmca", "head")
    store, answers = ImageStore(gated, processor), set()
    for factor in (0.0, 3.0):
        for factors in gated.model.image_gate.parameters():
            torch.nn.init.constant_(factors, factor)
        session = ChatSession(gated, processor, max_new_tokens=12, image_store=store)
        answers.add("".join(session.ask("What is this?", images[:1])))
    assert len(answers) == 2 and store.statistics.encoded_images == 1
    assert image_fingerprint(gated, processor) == image_fingerprint(*build("mmca"))


def test_weights_that_are_not_in_memory_are_never_taken_for_others(build):
    model, processor = build("mmca")
    model.model.multi_modal_projector.to("meta")
    assert image_fingerprint(model, processor) != image_fingerprint(model, processor)


@pytest.mark.parametrize("attention", ["cross", "causal"])
def test_only_where_images_see_nothing_else(build, attention, caplog):
    model, processor = build(attention)
    with pytest.raises(CannotReuseKV, match=attention):
        ImageStore(model, processor)
    with caplog.at_level(logging.INFO, logger="chat"):
        assert ChatSession(model, processor).image_store is None
    assert "read anew" in caplog.text and attention in caplog.text


def test_a_store_is_one_models(build, model_and_processor):
    with pytest.raises(ValueError, match="another model's"):
        ChatSession(*build("mmca"), image_store=ImageStore(*model_and_processor))


def test_after_a_failure_nothing_is_kept(model_and_processor, images, monkeypatch):
    store = ImageStore(*model_and_processor)
    with monkeypatch.context() as patched:
        patched.setattr(store, "_compute", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.states(images[:1])
    assert store.states(images[:1]).computed == 1 == store.statistics.encoded_images


def test_threads_share_a_store(model_and_processor, images, encoder_runs):
    store = ImageStore(*model_and_processor)

    def chat(number: int) -> list[str]:
        session = ChatSession(*model_and_processor, max_new_tokens=4, image_store=store, max_images=10)
        order = np.random.default_rng(number % 2).permutation(10)
        return ["".join(session.ask("What?", images[image])) for image in order]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(chat, range(8)))
    assert sum(encoder_runs) == store.statistics.encoded_images == 10
    assert answers[2:] == answers[:2] * 3


def test_an_image_seen_in_another_dialogue_costs_nothing(model_and_processor, pictures):
    first = ChatSession(*model_and_processor, max_new_tokens=8)
    list(first.ask("What are these?", pictures[:4]))
    second = first.another()
    list(second.ask("A long question first, so that they stand elsewhere."))
    list(second.ask("And these?", [pictures[3], pictures[0]]))
    list(second.ask("These?", [PIL.Image.open(pictures[2]).convert("RGB")]))  # pixels, not the file's bytes
    costs = [
        (each.encoded_images, each.computed_image_tokens) for each in (*first.statistics, *second.statistics)
    ]
    assert costs == [(4, 20), (0, 0), (0, 0), (1, 5)]
