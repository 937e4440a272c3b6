"""What nobody reads is not computed: rows of the last layer; and the encoder takes a few images at a time."""

import pytest
import torch

from tests.tiny import visual_chat
from training import model as training_model
from training.model import apply_liger
from utils.model import freeze, vision
from utils.model.vision import encode

IMAGE, TOKENS = 49, 5
ROW = [1, *[IMAGE] * TOKENS, 6, 7, *[IMAGE] * TOKENS, 8, 9, 10]


@pytest.fixture(params=["mmca", "cross", "causal"])
def model(request):
    model = visual_chat(attention=request.param)
    freeze(model)
    return model


def inputs(rows=2):
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([ROW] * rows)
    ids[:, -1] += torch.arange(rows)
    return {"input_ids": ids, "pixel_values": torch.randn(2 * rows, 3, 16, 16, generator=generator)}


def rows_seen(module):
    seen = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    return seen


def test_the_last_layer_computes_supervised_rows_only_and_the_loss_is_the_same(model):
    given = inputs()
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -2:] = given["input_ids"][:, -2:]
    logits = model(**given).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    first, last = model.model.language_model.layers
    seen = [rows_seen(part) for part in (first.mlp, last.mlp.gate_proj, model.lm_head)]
    out = model(**given, labels=labels)
    torch.testing.assert_close(out.loss, expected)
    assert out.logits is None
    halved = model(**given, labels=labels, num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(halved, expected / 2)
    every = 2 * len(ROW)
    assert [counts[-1] for counts in seen] == [every, 4, 4]
    (gradient,) = torch.autograd.grad(expected, [model.get_input_embeddings().weight])
    model(**given, labels=labels).loss.backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, gradient)


def test_a_prompt_computes_its_last_row_only(model):
    given = inputs()
    whole = model(**given).logits
    seen = rows_seen(model.model.language_model.layers[-1].mlp.gate_proj)
    torch.testing.assert_close(model(**given, logits_to_keep=1).logits, whole[:, -1:])
    torch.testing.assert_close(model(**given, logits_to_keep=3).logits, whole[:, -3:])
    assert seen == [2, 6]
    wanted = model(**given, output_hidden_states=True).hidden_states  # whoever asks for all states gets them
    found = model(**given, output_hidden_states=True, logits_to_keep=1).hidden_states
    assert all(map(torch.equal, found, wanted))


def test_the_encoder_takes_a_few_images_at_a_time(model):
    pixels = inputs()["pixel_values"]
    tower = model.model.vision_tower
    seen = []
    tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    whole, parts = encode(tower, pixels, at_once=0), encode(tower, pixels, at_once=3)
    torch.testing.assert_close(parts, whole)
    assert seen == [4, 3, 1] and not parts.requires_grad


def test_the_encoder_is_entered_as_often_as_on_the_process_with_the_most_images(model, monkeypatch):
    """Else the others would wait for this one to gather weights with them."""
    pixels = inputs()["pixel_values"]
    tower = model.model.vision_tower
    expected = encode(tower, pixels)
    seen = []
    tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr(vision, "_most", lambda count, device: 4)
    torch.testing.assert_close(encode(tower, pixels, at_once=3), expected)
    assert seen == [3, 1, 1, 1]


def test_the_encoder_keeps_its_own_precision(model):
    tower = model.model.vision_tower.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encode(tower, inputs()["pixel_values"]).dtype == torch.float64


def test_a_frozen_encoder_stays_in_evaluation_mode(model):
    model.train()
    assert model.model.language_model.training and not model.model.vision_tower.training
    model.model.vision_tower.requires_grad_(True)
    assert model.train().model.vision_tower.training


def test_liger_is_asked_for_where_it_cannot_be_used(model, monkeypatch):
    monkeypatch.setattr(training_model, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install liger-kernel"):
        apply_liger(model.model.language_model)
    monkeypatch.setattr(training_model, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU"):
        apply_liger(model.model.language_model)
