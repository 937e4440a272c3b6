import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from training.parameter_groups import parameter_groups
from utils.model import LoraSettings, VisualChatConfig, VisualChatForConditionalGeneration, freeze
from utils.model.lora import inject_lora

SIZES = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture
def model():
    """On shapes alone, with a gate and adapters in the decoder."""
    config = VisualChatConfig(
        text_config=LlamaConfig(vocab_size=10, **SIZES),
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **SIZES),
        image_gate="head",
    )
    with torch.device("meta"):
        model = VisualChatForConditionalGeneration(config)
        inject_lora(model, LoraSettings(lang_dim=2))
    return model


def found(model, train, **rates):
    freeze(model, train)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(
        model, **{"learning_rate": 1e-3, "embedding_learning_rate": 0, "weight_decay": 0.1, **rates}
    )
    return [
        {names[id(each)]: (group["lr"], group["weight_decay"]) for each in group["params"]}
        for group in groups
    ]


EMBEDDING, PROJECTOR = "model.language_model.embed_tokens.weight", "model.multi_modal_projector."


def test_the_published_recipe_has_a_rate_of_the_embedding_and_no_decay_of_norms_and_biases(model):
    groups = found(model, ["embedding", "projector"], embedding_learning_rate=1e-5)
    rates = {name: rate for group in groups for name, rate in group.items()}
    assert rates.pop(EMBEDDING) == (1e-5, 0.1)
    assert rates and all(name.startswith(PROJECTOR) for name in rates)
    for name, rate in rates.items():
        assert rate == (1e-3, 0.0 if "norm" in name or name.endswith("bias") else 0.1), name


def test_each_part_may_have_its_own_rate(model):
    train = ["embedding", "projector", "gate", "decoder", "encoder", "lora"]
    rates = dict(
        embedding_learning_rate=2e-3,
        gate_learning_rate=3e-3,
        decoder_learning_rate=4e-3,
        encoder_learning_rate=5e-3,
        lora_learning_rate=6e-3,
    )
    wanted = {
        EMBEDDING: 2e-3,
        "model.image_gate.1": 3e-3,
        "model.language_model.layers.0.mlp.up_proj.base_layer.weight": 4e-3,
        "lm_head.weight": 4e-3,
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight": 5e-3,
        "model.language_model.layers.0.mlp.up_proj.lora_A.default.weight": 6e-3,
    }
    groups = found(model, train, **rates)
    by_name = {name: rate for group in groups for name, (rate, _) in group.items()}
    assert {name: by_name[name] for name in wanted} == wanted
    assert {rate for name, rate in by_name.items() if name.startswith(PROJECTOR)} == {1e-3}
    assert all(len(set(group.values())) == 1 for group in groups)
    assert {decay for group in groups for name, (_, decay) in group.items() if "image_gate" in name} == {0.0}
    assert {rate for group in found(model, train, gate_learning_rate=1e-3) for rate, _ in group.values()} == {
        1e-3
    }


def test_adapters_share_the_projection_s_group_unless_they_have_a_rate(model):
    """As in checkpoints of before, whose optimizer states are kept by groups."""
    shared = found(model, ["projector", "lora"])
    assert any({"lora_" in name for name in group} == {True, False} for group in shared)
    apart = found(model, ["projector", "lora"], lora_learning_rate=1e-4)
    assert all(len({"lora_" in name for name in group}) == 1 for group in apart)
