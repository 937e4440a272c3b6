"""Operations of a step, worked out by hand for shapes that are known, and counted by torch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from training.metrics.mfu import StepFlops, encoder_forward, peak_flops
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration, freeze
from utils.model.building import LoraSettings, build_visual_chat


def test_the_encoder_of_llava_costs_162_gflop_an_image() -> None:
    """CLIP ViT-L/14 at 224 pixels: 24 layers of width 1024 and 4096 on 257 tokens."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    matrices = 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    attention = 24 * 4 * 1024 * 257**2
    patches = 2 * 256 * 3 * 14**2 * 1024
    assert encoder_forward(config) == pytest.approx(2 * matrices * 257 + attention + patches, rel=1e-4)


@pytest.mark.parametrize(
    ("train", "attention_passes"),
    [
        (("embedding", "projector"), 2 * 3),
        (("embedding", "decoder"), 2 * 3),
        (("projector", "decoder:top-1"), 2 * 3),
        (("decoder:top-1",), 1 + 3),  # nothing below the last layer asks for a gradient
    ],
)
def test_a_decoder_costs_what_torch_counts(world, train, attention_passes) -> None:
    """Forward and backward, scores not kept; two layers."""
    paths = str(world.language_model), str(world.vision_model)
    model, _ = build_visual_chat(*paths, attention="causal", train=train)
    flops = StepFlops.of(model)
    batch, length, width = 2, 24, 32
    decoder = LlamaForCausalLM(model.config.text_config)
    learns = dict(model.model.language_model.named_parameters())
    for name, parameter in decoder.model.named_parameters():
        parameter.requires_grad_(learns[name].requires_grad)
    decoder.lm_head.requires_grad_(model.lm_head.weight.requires_grad)
    decoder.set_attn_implementation("eager")
    embedded = torch.randn(batch, length, width, requires_grad=train[0] in ("embedding", "projector"))
    with FlopCounterMode(display=False) as counter:
        hidden = decoder.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        decoder.lm_head(hidden[:, -5:]).sum().backward()
    # Eager attention computes all pairs of positions, and keeps its scores: 3 forwards, not 3.5.
    assert flops.per_pair == 4 * width * (attention_passes + 0.5 * (attention_passes // 3))
    expected = (
        flops.per_token * batch * length
        + attention_passes * 4 * width * batch * length**2
        + flops.per_supervised_token * batch * 5
    )
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_adapters_cost_the_gradients_of_their_weights_too(world) -> None:
    paths = str(world.language_model), str(world.vision_model)
    plain, _ = build_visual_chat(*paths)
    adapted, _ = build_visual_chat(*paths, lora=LoraSettings(lang_dim=4))
    adapters = sum(parameter.numel() for name, parameter in adapted.named_parameters() if "lora_" in name)
    assert adapters > 0
    assert StepFlops.of(adapted).per_token - StepFlops.of(plain).per_token == 6 * adapters


def test_an_encoder_that_learns_costs_its_backward(world) -> None:
    paths = str(world.language_model), str(world.vision_model)
    frozen, _ = build_visual_chat(*paths)
    adapted, _ = build_visual_chat(*paths, lora=LoraSettings(vis_dim=2))
    learning, _ = build_visual_chat(*paths, train=["projector", "encoder"])
    forward = encoder_forward(frozen.config.vision_config)
    assert [StepFlops.of(each).per_image / forward for each in (frozen, adapted, learning)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("image_layers", "matrices"),
    [
        ("full", 4 * 32 * 32 + 3 * 32 * 64),
        ("no_mlp", 3 * 32 * 32),  # key, value, output
        ("none", 2 * 32 * 32),  # key and value
    ],
)
def test_an_image_token_costs_what_it_goes_through(image_layers: str, matrices: int) -> None:
    """Two layers of width 32, frozen: gradients pass to what was projected."""
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = VisualChatConfig(
        text_config=LlamaConfig(vocab_size=50, **sizes),
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **sizes),
        image_layers=image_layers,
    )
    model = VisualChatForConditionalGeneration(config)
    freeze(model)
    flops = StepFlops.of(model)
    assert flops.per_image_token == 4 * 2 * matrices
    text = 4 * 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert flops.total(5, 0, 0, 0, 2) == 3 * text + 2 * 4 * 2 * matrices


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA A1000", None),
    ],
)
def test_devices_are_known_by_their_names_and_others_not_guessed(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (tflops and tflops * 1e12)
