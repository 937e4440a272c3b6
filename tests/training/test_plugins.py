"""A dataset and an encoder of the user's own, as the pages of docs/ write them: trained, and the checkpoint used."""

import json
import sys

import PIL.Image
import pytest
import torch
from transformers import CONFIG_MAPPING, CLIPImageProcessor

from chat.arguments import add_checkpoint_arguments, load_named_checkpoint
from chat.image_kv.store import image_fingerprint
from chat.session import ChatSession
from tests.test_docs import python_blocks
from training.memory.named_models import encoder_config
from training.vision_features import _fingerprint as features_of
from utils.commands import ROOT, Parser, UsageError
from utils.model import build_visual_chat
from utils.model.vision import FAMILIES
from utils.plugins import load_plugins


def make_eye(own, folder):
    own.PatchModel(own.PatchConfig(image_size=16, patch_size=8, hidden_size=32)).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)


@pytest.mark.slow
def test_one_step_of_training_and_a_question(trainings, tmp_path, monkeypatch):
    for name in ("modules", "path"):
        monkeypatch.setattr(sys, name, vars(sys)[name].copy())
    monkeypatch.setitem(FAMILIES, "my_patches", None)  # taken back after the test
    dataset, encoder = tmp_path / "my_dataset.py", tmp_path / "my_encoder.py"
    dataset.write_text(python_blocks("add-a-dataset")[0])
    encoder.write_text(python_blocks("add-an-encoder")[1])
    images = tmp_path / "data" / "birds" / "images"
    images.mkdir(parents=True)
    birds = ["a heron", "a wren", "", "a stork", "a finch", "a crow"]
    for number in range(len(birds)):
        PIL.Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(images / f"{number}.jpg")
    records = [{"file": f"{number}.jpg", "bird": bird} for number, bird in enumerate(birds)]
    (images.parent / "birds.json").write_text(json.dumps(records))

    load_plugins([str(encoder)])
    torch.manual_seed(0)
    make_eye(sys.modules["my_encoder"], tmp_path / "eye")

    command = trainings.arguments(
        tmp_path / "run",
        plugin=[dataset, encoder],
        dataset_names=["birds"],
        data_path=tmp_path / "data",
        vision_model_name_or_path=tmp_path / "eye",
        data_train_split_ratio=1,
        eval_strategy="no",
        max_steps=1,
        checkpoint_form="trained",
    )
    trainings.run(command)
    (bad,) = map(json.loads, (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines())
    assert (bad["file"], bad["index"], bad["reason"]) == ("birds/birds.json", 2, "it names no bird")

    parser = Parser()
    add_checkpoint_arguments(parser)
    words = ["--checkpoint_path", str(tmp_path / "run" / "final"), "--plugin", str(encoder)]
    arguments = parser.parse_args([*words, "--device_map", "cpu"])
    model, processor = load_named_checkpoint(arguments, arguments.checkpoint_path)
    assert type(model.model.vision_tower).__name__ == "PatchModel"
    session = ChatSession(model, processor, max_new_tokens=3)
    assert isinstance("".join(session.ask("Which bird is this?", [images / "0.jpg"])), str)


def test_caches_and_plans_know_the_plugin(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "my_patches", None)
    encoder = tmp_path / "my_encoder_in_caches.py"
    encoder.write_text(python_blocks("add-an-encoder")[1])
    load_plugins([str(encoder)])
    make_eye(sys.modules[encoder.stem], tmp_path / "eye")
    model, processor = build_visual_chat(str(ROOT / "assets" / "tiny_llama"), str(tmp_path / "eye"))
    before = image_fingerprint(model, processor), features_of(model.model.vision_tower, processor)
    assert before == (image_fingerprint(model, processor), features_of(model.model.vision_tower, processor))
    encoder.write_text(encoder.read_text() + "# computes something else\n")
    after = image_fingerprint(model, processor), features_of(model.model.vision_tower, processor)
    assert before[0] != after[0] and before[1] != after[1]

    monkeypatch.delitem(FAMILIES, "my_patches")  # as where no plugin is given
    known = CONFIG_MAPPING._extra_content.copy()
    del known["my_patches"]
    monkeypatch.setattr(CONFIG_MAPPING, "_extra_content", known)
    with pytest.raises(UsageError, match=r"--vision_model_name_or_path \S+eye: [^\n]*--plugin[^\n]*$"):
        encoder_config(str(tmp_path / "eye"))
