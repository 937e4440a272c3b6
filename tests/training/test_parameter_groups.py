import pytest
from torch import nn
from transformers import LlamaConfig

from training.parameter_groups import parameter_groups
from utils.model.mmca import ImageGate


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.projector = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.decoder = nn.Linear(4, 4).requires_grad_(False)

    def get_input_embeddings(self):
        return self.embedding


def found(model, **rates):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(
        model, **{"learning_rate": 1e-3, "embedding_learning_rate": 0, "weight_decay": 0.1, **rates}
    )
    return {
        names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]
    }


def test_rates_and_decay():
    assert found(Tiny(), embedding_learning_rate=1e-5) == {
        "embedding.weight": (1e-5, 0.1),
        "projector.0.weight": (1e-3, 0.1),
        "projector.0.bias": (1e-3, 0.0),
        "projector.1.weight": (1e-3, 0.0),
        "projector.1.bias": (1e-3, 0.0),
    }


def test_zero_means_the_same_rate():
    assert found(Tiny())["embedding.weight"] == (1e-3, 0.1)


def test_a_gate_has_a_rate_of_its_own_and_no_decay():
    model = Tiny()
    model.gate = ImageGate(LlamaConfig(num_hidden_layers=2, num_attention_heads=4))
    rates = found(model, gate_learning_rate=0.02)
    assert {name: rate for name, rate in rates.items() if "gate" in name} == {
        "gate.0": (0.02, 0.0),
        "gate.1": (0.02, 0.0),
    }
    assert {name: rate for name, rate in rates.items() if "gate" not in name} == found(Tiny())


def test_adapters_may_have_a_rate_of_their_own():
    model = Tiny()
    model.layer = nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})})
    assert found(model)["layer.lora_A.default.weight"] == (1e-3, 0.1)
    rates = found(model, lora_learning_rate=1e-4)
    assert rates.pop("layer.lora_A.default.weight") == (1e-4, 0.1)
    assert rates == found(Tiny())


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing"):
        parameter_groups(Tiny().requires_grad_(False), 1e-3, 0, 0)
