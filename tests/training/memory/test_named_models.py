import json

import pytest

from training.memory.named_models import decoder_config, encoder_config
from utils.commands import UsageError


@pytest.mark.parametrize(
    "name, layers, heads, shared",
    [
        ("llama-2-7b", 32, 32, 32),
        ("meta-llama/Llama-2-13b-hf", 40, 40, 40),
        ("meta-llama/Llama-2-70b-chat-hf", 80, 64, 8),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 32, 32, 8),
        ("mistralai/Mistral-7B-v0.1", 32, 32, 8),
        ("Qwen/Qwen2.5-7B-Instruct", 28, 28, 4),
        ("Qwen/Qwen3-8B", 36, 32, 8),
    ],
)
def test_decoders_are_known_without_a_network(name, layers, heads, shared):
    config = decoder_config(name)
    assert config.num_hidden_layers == layers
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, shared)


@pytest.mark.parametrize(
    "name, size, width",
    [
        ("openai/clip-vit-large-patch14", 224, 1024),
        ("openai/clip-vit-large-patch14-336", 336, 1024),
        ("google/siglip-so400m-patch14-384", 384, 1152),
        ("qwen-vl-vit", 448, 1664),
        ("ViT-bigG-14/laion2b_s39b_b160k", 224, 1664),
    ],
)
def test_encoders_too(name, size, width):
    config = encoder_config(name)
    assert (config.image_size, config.hidden_size) == (size, width)


def test_a_folder_is_read_rather_than_its_name(tmp_path):
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 3}))
    assert decoder_config(str(folder)).num_hidden_layers == 3


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UsageError, match=r"--lm_model_name_or_path nobody/knows: .* llama-2-7b"):
        decoder_config("nobody/knows")
    with pytest.raises(UsageError, match=r"--vision_model_name_or_path .* qwen-vl-vit"):
        encoder_config("nobody/knows")
