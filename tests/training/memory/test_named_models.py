import json

import pytest

from training.memory.named_models import decoder_config, decoder_size, encoder_config, encoder_size
from utils.commands import UsageError
from utils.model.vision import image_size


@pytest.mark.parametrize(
    "name, layers, heads, shared",
    [
        ("llama-2-7b", 32, 32, 32),
        ("meta-llama/Llama-2-70b-chat-hf", 80, 64, 8),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 32, 32, 8),
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
        ("openai/clip-vit-large-patch14-336", 336, 1024),
        ("google/siglip2-so400m-patch16-256", 256, 1152),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", 224, 1024),
        ("qwen-vl-vit", 448, 1664),
        ("ViT-bigG-14/laion2b_s39b_b160k", 224, 1664),
    ],
)
def test_encoders_too(name, size, width):
    config = encoder_config(name)
    assert (image_size(config), config.hidden_size) == (size, width)


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
    with pytest.raises(UsageError, match=r"say which weights .*: ViT-bigG-14/laion2b_s39b_b160k"):
        encoder_config("ViT-bigG-14")


def test_sizes_are_parameters_times_bytes():
    """Counted by hand from the config.json of both."""
    width, inner, layers, keys = 2048, 6144, 28, 8 * 128
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width + 2 * 128
    assert decoder_size("Qwen/Qwen3-1.7B") == 2 * (
        151936 * width + layers * layer + width
    )  # bfloat16, tied head

    width, inner, layers = 1152, 4304, 27
    attention, mlp, norm = 4 * (width * width + width), 2 * width * inner + inner + width, 2 * width
    layer = attention + mlp + 2 * norm
    image = 3 * 16 * 16 * width + width + 256 * width + layers * layer + norm
    image += width + attention + mlp + norm  # the head that pools
    text = 256000 * width + 64 * width + layers * layer + norm + width * width + width
    assert encoder_size("google/siglip2-so400m-patch16-256") == 4 * (image + text + 2)  # with scale and bias
