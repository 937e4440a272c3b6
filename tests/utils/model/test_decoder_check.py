"""Which decoders are joined under multi-modal causal attention: families of transformers, as large as published."""

import json
import shutil

import pytest
from transformers import CONFIG_MAPPING, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from utils.model import build_visual_chat, decoder_check
from utils.model.decoder_check import check_computes_mmca

QUICK = ("llama", "qwen3", "opt", "mpt", "gpt_oss", "qwen3_next", "mamba")


PUBLISHED = {  # where a class by itself describes no published decoder
    "lfm2": {"full_attn_idxs": [2, 5, 8, 10, 12, 14]},
    "deepseek_v2": {"num_experts_per_tok": 6, "n_routed_experts": 64, "first_k_dense_replace": 1},
}


def config_of(name):
    return CONFIG_MAPPING[name](**PUBLISHED.get(name, {}))


def each(names):
    """Those that this transformers has; most of them slow."""
    marks = {name: () if name in QUICK else pytest.mark.slow for name in names if name in CONFIG_MAPPING}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


COMPUTE_IT = """
    llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma3_text phi phi3 phimoe granite granitemoe olmo
    olmo2 olmo3 olmoe smollm3 starcoder2 glm glm4 cohere cohere2 gpt_neox exaone4 seed_oss helium ernie4_5 apertus arcee
    deepseek_v2 deepseek_v3 llama4_text
"""


@pytest.mark.parametrize("name", each(COMPUTE_IT.split()))
def test_decoders_whose_attention_is_transformers_are_accepted(name):
    check_computes_mmca(config_of(name))


@pytest.mark.parametrize("image_layers", ["no_mlp", "none"])
@pytest.mark.parametrize("name", each(COMPUTE_IT.split()))
def test_their_image_tokens_can_be_kept_out_of_layers(name, image_layers):
    check_computes_mmca(config_of(name), image_layers=image_layers)


@pytest.mark.parametrize("image_layers", ["no_mlp", "none"])
def test_a_norm_with_a_bias_behind_the_mlp_is_found(image_layers, monkeypatch):
    """Zeros would come out of it as the bias."""
    forward = LlamaDecoderLayer.forward

    def biased(self, *args, **kwargs):
        return forward(self, *args, **kwargs) + 0.1

    monkeypatch.setattr(LlamaDecoderLayer, "forward", biased)
    decoder_check._what_is_wrong.cache_clear()
    check_computes_mmca(LlamaConfig())
    with pytest.raises(ValueError, match=f"with image_layers {image_layers}: .* a bias .*; choose"):
        check_computes_mmca(LlamaConfig(), image_layers=image_layers)
    decoder_check._what_is_wrong.cache_clear()


INTERFACE = "does not compute attention through transformers' AttentionInterface"
MIXES = "mix tokens otherwise than by attention"
REFUSED = {
    "gpt_oss": "passes s_aux to attention, which changes its scores",
    "gemma2": "passes softcap to attention, which changes its scores",
    "mpt": INTERFACE,
    "bloom": INTERFACE,
    "falcon": INTERFACE,
    "opt": "packed conversations read each other",
    "mamba": MIXES,
    "qwen3_next": f"linear_attention {MIXES}",
    "qwen3_5_text": f"linear_attention {MIXES}",
    "jamba": "attention",
    "lfm2": MIXES,
    "minimax": MIXES,
    "falcon_h1": "attention",
}


@pytest.mark.parametrize("name", each(REFUSED))
def test_others_are_refused_in_one_line_with_the_cause(name):
    with pytest.raises(
        ValueError, match=f"type {name} cannot be used with attention mmca: .*{REFUSED[name]}"
    ) as raised:
        check_computes_mmca(config_of(name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("shift", "until", "cause"),
    [
        (1, None, "packed conversations read each other"),
        (-1, 9, "tokens read what comes after them"),
        (1, 9, "its image tokens read other tokens"),
    ],
)
def test_tokens_mixed_beside_attention_are_found_by_what_moves(shift, until, cause, monkeypatch):
    """The first conversation of the two has 9 tokens."""
    forward = LlamaMLP.forward

    def mixing(self, states):
        mixed = states.clone()
        mixed[:, :until] = states[:, :until].roll(shift, dims=1)
        mixed[:, 0 if shift > 0 else slice(8, 9)] = 0  # what has been rolled around
        return forward(self, states) + 0.1 * mixed

    monkeypatch.setattr(LlamaMLP, "forward", mixing)
    decoder_check._what_is_wrong.cache_clear()
    with pytest.raises(ValueError, match=cause):
        check_computes_mmca(LlamaConfig())
    decoder_check._what_is_wrong.cache_clear()


def test_a_decoder_that_does_not_compute_it_is_not_joined(clip_folder, llama_folder, tmp_path):
    """Nor are its weights read."""
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((llama_folder / "config.json").read_text()) | {"model_type": "gpt_oss"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=r"type gpt_oss cannot be used with attention mmca: .* s_aux"):
        build_visual_chat(str(tmp_path), str(clip_folder))
