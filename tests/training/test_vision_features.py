"""`--cache_vision_features`: the same training, in which the encoder is entered once a picture."""

import shutil
from collections import namedtuple
from pathlib import Path

import PIL.Image
import pytest
import torch

from training.datasets import make_rows
from training.vision_features import store_features
from utils.commands import UsageError
from utils.data import Collator, build_dataset, split_dataset
from utils.data.readers.conversion_cache import in_units
from utils.model import LoraSettings, build_visual_chat
from utils.model.quantised import FrozenBits, quantised_layers, whole_weight
from utils.model.vision import encode_images

CPU = torch.device("cpu")
PICTURES = 30  # the world's
Arguments = namedtuple(
    "Arguments", "max_seq_len packing max_images_per_row max_num_image_per_sample tiles", defaults=[8, 8, 1]
)


@pytest.fixture
def features_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision_features"


@pytest.fixture
def parts(world, features_folder):
    return split_dataset(build_dataset(["llava", "llava_dial"], world.data), 0.8, seed=1)


def build(world, dtype=torch.float32, **how):
    torch.manual_seed(0)
    return build_visual_chat(str(world.language_model), str(world.vision_model), dtype=dtype, **how)


@pytest.mark.parametrize("packing", [False, True])
def test_trains_on_the_same_numbers_without_the_encoder(world, parts, packing):
    model, processor = build(world)
    arguments = Arguments(256, packing)
    collate = Collator(pad_token_id=processor.tokenizer.pad_token_id)

    def batch_of(rows):
        return collate([rows[index] for index in range(4)])

    def loss_and_gradients(batch):
        model.zero_grad()
        loss = model(**batch.inputs).loss
        loss.backward()
        return loss.detach(), [each.grad.clone() for each in model.parameters() if each.grad is not None]

    for part in parts:
        pixels = batch_of(make_rows(part, processor, arguments, seed=1))
        expected, gradients = loss_and_gradients(pixels)
        features = store_features(model, processor, parts, CPU)
        assert len(features) == PICTURES
        cached = batch_of(make_rows(part, processor, arguments, seed=1, features=features))
        outputs = cached.inputs["mm_encoder_outputs"]["image"]
        assert outputs.last_hidden_state.shape == (pixels.images, 5, 32) and cached.images == pixels.images
        assert torch.equal(cached.inputs["input_ids"], pixels.inputs["input_ids"])
        model.model.vision_tower.forward = None  # not to be entered
        found, ours = loss_and_gradients(cached)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        for each, theirs in zip(ours, gradients, strict=True):
            torch.testing.assert_close(each, theirs, atol=1e-6, rtol=1e-4)
        del model.model.vision_tower.forward


def test_tiles_are_pictures_of_their_own(world, features_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world.data, data)
    for path in data.rglob("*.jpg"):
        PIL.Image.open(path).resize((40, 40)).save(path)
    part, _ = split_dataset(build_dataset(["llava_dial"], data), 1, seed=1)
    model, processor = build(world, tiles=4)
    arguments = Arguments(256, False)
    features = store_features(model, processor, [part], CPU)
    assert len(features) == 5 * PICTURES
    pixels = make_rows(part, processor, arguments, seed=1)[0].pixel_values
    read = make_rows(part, processor, arguments, seed=1, features=features)[0].image_features
    torch.testing.assert_close(read, encode_images(model.model.vision_tower, pixels))


def test_each_picture_is_computed_once_and_its_size_foretold(world, parts, features_folder, caplog):
    """30 pictures are in 60 records; the room that is foretold is the room that is taken."""
    caplog.set_level("INFO")
    model, processor = build(world, torch.bfloat16)
    seen = []
    model.model.vision_tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    store_features(model, processor, parts, CPU)
    assert sum(seen) == PICTURES
    each = 5 * 32 * 2
    assert f"0 pictures of {in_units(each)} are stored" in caplog.text
    assert f"{PICTURES} more take {in_units(PICTURES * each)}" in caplog.text
    (folder,) = features_folder.iterdir()
    taken = sum(path.stat().st_size for path in folder.iterdir())
    assert PICTURES * each < taken < PICTURES * (each + 16) + 1000
    assert len(store_features(model, processor, parts, CPU)) == sum(seen) == PICTURES


def test_another_encoder_has_features_of_its_own(world, parts, features_folder):
    model, processor = build(world)
    first = store_features(model, processor, parts, CPU)
    with torch.no_grad():
        model.model.vision_tower.get_parameter("encoder.layers.1.mlp.fc2.bias")[0] += 1
    second = store_features(model, processor, parts, CPU)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    third = store_features(model, processor, parts, CPU)
    assert (
        len({store.folder for store in (first, second, third)}) == len(list(features_folder.iterdir())) == 3
    )


def test_a_quantised_encoder_has_features_of_its_own(world, parts, features_folder):
    """Also where another one has the very weights that its bits stand for."""
    model, processor = build(world)
    small, _ = build(world, frozen_bits=FrozenBits(0, 4))
    folders = {store_features(model, processor, parts, CPU).folder}
    tower = model.model.vision_tower
    with torch.no_grad():
        for name, layer in quantised_layers(small.model.vision_tower).items():
            tower.get_submodule(name).weight.copy_(whole_weight(layer))
    features = store_features(small, processor, parts, CPU)
    folders |= {store_features(model, processor, parts, CPU).folder, features.folder}
    again, _ = build(world, frozen_bits=FrozenBits(0, 4))
    assert store_features(again, processor, parts, CPU).folder == features.folder and len(folders) == 3
    arguments = Arguments(256, False)
    pixels = make_rows(parts[0], processor, arguments, seed=1)[0].pixel_values
    read = make_rows(parts[0], processor, arguments, seed=1, features=features)[0].image_features
    torch.testing.assert_close(read, encode_images(small.model.vision_tower, pixels), atol=1e-5, rtol=1e-3)


def test_pictures_that_cannot_be_read_are_left_to_training(world, parts, tmp_path, monkeypatch):
    model, processor = build(world)
    broken = Path(parts[0].source(0).images[0].source)
    content = broken.read_bytes()
    try:
        broken.write_bytes(content[: len(content) // 2])
        features = store_features(model, processor, parts, CPU)
        assert len(features) == PICTURES - 1
        broken.unlink()
        rows = make_rows(parts[0], processor, Arguments(256, False), seed=1, features=features)
        bad = [found for index in range(len(rows)) for found in rows[index].bad]
        assert bad and all("there is no such image file" in found.reason for found in bad)
    finally:
        broken.write_bytes(content)


def test_an_encoder_that_learns_is_refused(world, parts):
    model, processor = build(world, lora=LoraSettings(vis_dim=2))
    with pytest.raises(UsageError, match="needs an encoder that stays as it is: leave out --vis_lora_dim"):
        store_features(model, processor, parts, CPU)


def test_a_full_disk_is_refused_before_anything_is_computed(world, parts, features_folder, monkeypatch):
    model, processor = build(world)
    usage = namedtuple("Usage", "free")(free=1000)
    monkeypatch.setattr("training.vision_features.shutil.disk_usage", lambda _: usage)
    with pytest.raises(
        UsageError, match=r"would take 19\.2 kB in .*, where 1 kB are free: name a larger disk"
    ):
        store_features(model, processor, parts, CPU)
    assert not list(features_folder.rglob("*.safetensors"))


def test_a_text_only_batch_enters_the_projector_alone(world, features_folder, monkeypatch):
    """Under several processes a blank image stands in where a process has none: see `enter_encoder_anyway`."""
    model, processor = build(world)
    parts = split_dataset(build_dataset(["llava"], world.data), 1.0, seed=1)
    assert len(parts[1]) == 0  # nothing to evaluate on
    features = store_features(model, processor, parts, CPU)
    rows = make_rows(parts[0], processor, Arguments(256, False), seed=1, features=features)
    batch = Collator(processor.tokenizer.pad_token_id)([rows.empty_sample])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    entered = []
    model.model.vision_tower.register_forward_pre_hook(lambda *_: entered.append("encoder"))
    model.model.multi_modal_projector.register_forward_hook(lambda *args: entered.append(args[2].shape))
    model.train()
    model(**batch.inputs).loss.backward()
    assert entered == [(1, 5, 32)]
    batch.inputs.pop("mm_encoder_outputs")
    model(**batch.inputs)
    assert entered[1:] == ["encoder", (1, 5, 32)]


@pytest.mark.slow
def test_two_processes_under_zero_3_train_to_the_same_losses(trainings, world, tmp_path):
    """Whether they read pixels or features, and as one process does; of half of the images there are tiles."""
    data = tmp_path / "data"
    shutil.copytree(world.data, data)
    for path in sorted(data.rglob("*.jpg"))[::2]:
        PIL.Image.open(path).resize((40, 40)).save(path)
    flags = dict(num_train_epochs=1, data_path=data, tiles=4, data_cache_path=tmp_path / "cache")
    for name, more in (("pixels", {}), ("features", {"cache_vision_features": True})):
        command = trainings.arguments(tmp_path / name, **flags, zero_stage=3, **more)
        trainings.run(command, processes=2)
    trainings.run(trainings.arguments(tmp_path / "alone", **flags, per_device_train_batch_size=8))
    plain, cached, alone = (trainings.losses(tmp_path / name) for name in ("pixels", "features", "alone"))
    assert cached == pytest.approx(plain, abs=1e-5) and alone == pytest.approx(plain, abs=1e-4)
