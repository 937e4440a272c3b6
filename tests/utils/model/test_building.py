"""Building from pretrained folders: what is added, what is frozen, what is refused."""

import logging

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.tiny import write_llama
from utils.model import LoraSettings, build_visual_chat
from utils.model.checkpoint import readable_size
from utils.model.sizes import checkpoint_sizes, llama_2_config


def build(language, vision, **kwargs):
    torch.manual_seed(0)
    return build_visual_chat(str(language), str(vision), **kwargs)


def learning(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_image_token_gets_the_mean_row(llama_folder, clip_folder):
    base = LlamaForCausalLM.from_pretrained(llama_folder)
    model, processor = build(llama_folder, clip_folder)
    rows = base.config.vocab_size
    assert processor.image_token_id == rows
    for ours, theirs in (
        (model.get_input_embeddings().weight, base.get_input_embeddings().weight),
        (model.lm_head.weight, base.lm_head.weight),
    ):
        assert ours.shape[0] == rows + 1
        assert torch.equal(ours[:rows], theirs)
        torch.testing.assert_close(ours[rows], theirs.mean(0))
    assert model.generation_config.suppress_tokens == [rows]


def test_pads_with_unk_where_there_is_no_padding_token(llama_folder, clip_folder):
    assert AutoTokenizer.from_pretrained(llama_folder).pad_token is None
    model, processor = build(llama_folder, clip_folder)
    assert processor.tokenizer.pad_token == "<unk>"
    assert model.generation_config.pad_token_id == 0


def test_a_tied_head_is_untied_and_it_is_logged(llama_folder, clip_folder, tmp_path, caplog):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    write_llama(tmp_path, tokenizer, tie_word_embeddings=True)
    with caplog.at_level(logging.INFO):
        model, _ = build(tmp_path, clip_folder)
    assert "untied the head" in caplog.text
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert not model.lm_head.weight.requires_grad and not model.config.text_config.tie_word_embeddings


def test_lora_finds_the_layers_that_the_flags_name(llama_folder, clip_folder):
    lora = LoraSettings(lang_dim=4, lang_module_name="model.layers.1.self_attn", vis_dim=2)
    model, _ = build(llama_folder, clip_folder, lora=lora)
    names = learning(model)
    adapted = {name.split(".lora_")[0] for name in names if "lora_" in name}
    decoder = {name for name in adapted if "language_model" in name}
    assert decoder == {f"model.language_model.layers.1.self_attn.{part}_proj" for part in "qkvo"}
    encoder = {name for name in adapted if "vision_tower" in name}
    assert len(encoder) == 2 * 6 and all(".encoder.layers." in name for name in encoder)
    assert any("embed_tokens" in name for name in names)


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("alpha", [None, 1, 16])
def test_the_scale_of_adapters(llama_folder, clip_folder, rank, alpha):
    """Once, whatever the rank, unless alpha says otherwise: alpha / rank, so 1 / rank (of 2023) at alpha 1."""
    lora = LoraSettings(lang_dim=rank, lang_module_name="0.self_attn.q_proj", alpha=alpha)
    model, _ = build(llama_folder, clip_folder, lora=lora)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    torch.nn.init.ones_(layer.lora_A["default"].weight)
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    given = torch.ones(1, layer.in_features)
    added = layer(given) - layer.base_layer(given)  # rank * in_features, before it is scaled
    scale = 1 if alpha is None else alpha / rank
    wanted = torch.full_like(added, scale * rank * layer.in_features)
    torch.testing.assert_close(added, wanted, atol=1e-3, rtol=1e-3)


def test_adapters_of_no_layer_are_refused(llama_folder, clip_folder):
    named = r"no linear layer of LlamaModel with 'nowhere' in its name; they are named model\.layers\.0\.self_attn"
    with pytest.raises(ValueError, match=named):
        build(llama_folder, clip_folder, lora=LoraSettings(lang_dim=2, lang_module_name="nowhere"))


@pytest.mark.parametrize("missing", ["./nowhere", "/nowhere/at/all", "assets/of/nobody"])
def test_a_missing_folder_is_named(llama_folder, clip_folder, missing):
    with pytest.raises(ValueError, match=f"there is no folder {missing}"):
        build_visual_chat(missing, str(clip_folder))
    with pytest.raises(ValueError, match=f"there is no folder {missing}"):
        build_visual_chat(str(llama_folder), missing)


def test_checkpoint_sizes_count_every_weight(llama_folder, clip_folder):
    lora = LoraSettings(lang_dim=4)
    model, _ = build(llama_folder, clip_folder, lora=lora)
    full, trained = checkpoint_sizes(model.config, lora, dtype=torch.float32)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert full == 4 * (sum(p.numel() for p in model.state_dict().values()) - adapters)
    assert trained == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("projector_type", ["linear", "vit", "perceiver"])
def test_trained_weights_of_llama_2_70b_take_less_than_a_gigabyte(projector_type):
    full, trained = checkpoint_sizes(llama_2_config("70B", projector_type))
    assert trained < 10**9
    assert 135 * 10**9 < full < 145 * 10**9


def test_readable_sizes():
    found = [readable_size(size) for size in (12, 1_500, 812_000_000, 13_500_000_000)]
    assert found == ["12 bytes", "1.5 kB", "812 MB", "13.5 GB"]


def test_lora_leaves_out_layers_that_would_pass_it_by(llama_folder, encoder_folders):
    """SigLIP's head has torch's own multi-head attention, whose weights are used without a call of its layers."""
    lora = LoraSettings(vis_dim=2, vis_module_name="")
    model, _ = build(llama_folder, encoder_folders["siglip"], lora=lora)
    adapted = {name.split(".lora_")[0] for name in learning(model) if "lora_" in name}
    assert adapted and not any("attention.out_proj" in name for name in adapted)
