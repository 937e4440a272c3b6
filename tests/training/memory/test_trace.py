"""The trace of a step on shapes against the same step on real tensors: every kind of model and batch."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, Qwen3Config

from training.memory.shapes import LiveMemory, tensors_alive
from training.memory.trace import BatchShape, enable_checkpointing, make_batch, meta_model, trace
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration
from utils.model.building import freeze
from utils.model.lora import LoraSettings, inject_lora
from utils.model.quantised import FrozenBits

pytestmark = pytest.mark.integration

SIZES = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
VISION = CLIPVisionConfig(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
)
TOKENS = 17
LORA = LoraSettings(lang_dim=4, vis_dim=2)


def config(attention="mmca", projector="linear", text=None, image_layers="full"):
    return VisualChatConfig(
        text_config=text or LlamaConfig(**SIZES),
        vision_config=VISION,
        projector_type=projector,
        attention=attention,
        image_layers=image_layers,
        image_token_id=299,
        image_seq_length=256 if projector == "perceiver" else TOKENS,
    )


def measured(config, dtype, lora, checkpointing, shape):
    """The peak over a step on the CPU, weights aside, counted over real tensors."""
    model = VisualChatForConditionalGeneration(config).to(dtype)
    if lora:
        inject_lora(model, lora)
    freeze(model)
    model.train()
    if checkpointing:
        enable_checkpointing(model)
    run = LiveMemory("cpu")
    for tensor in tensors_alive("cpu"):
        run.enter(tensor)
    before = run.total
    with run:
        batch = make_batch(shape, config.image_token_id, 5, VISION.image_size, "cpu")
        integers = sum(each.nbytes for each in batch.values() if not each.is_floating_point())
        model(**batch).loss.backward()
    return run.peak - before - integers


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention": "cross"},
        {"checkpointing": True, "dtype": torch.bfloat16, "images": 0},
        {"packed": True, "attention": "causal"},
        {"projector": "vit"},
        {"projector": "perceiver", "length": 640, "images": 2},
        {"image_layers": "no_mlp"},
        {"image_layers": "none", "checkpointing": True, "lora": LORA},
        {"rows": 1, "supervised": 0.25},
        {"text": Qwen3Config(**SIZES, head_dim=24)},
    ],
    ids=lambda settings: " ".join(f"{key}={value}"[:24] for key, value in settings.items()) or "plain",
)
def test_a_step_on_shapes_takes_what_the_real_one_does(settings):
    form = ("attention", "projector", "text", "image_layers")
    made = config(**{name: settings[name] for name in form if name in settings})
    batch = {"rows": 3, "length": 256, "images": 3, "supervised": 0.5, "packed": False}
    batch |= {name: value for name, value in settings.items() if name in batch}
    shape = BatchShape(tokens_per_image=made.image_seq_length, **batch)
    how = settings.get("dtype", torch.float32), settings.get("lora"), settings.get("checkpointing", False)
    model = meta_model(made, *how)
    foretold = trace(model, shape, keep_gradients=True)
    real = measured(made, *how, shape)
    assert foretold.peak == pytest.approx(real, rel=0.05)
    assert sum(foretold.parts.values()) == foretold.peak
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())


def test_quantised_matrices_are_whole_only_while_they_compute():
    """4 bits keep nothing more for the backward pass; 8 bits keep the inputs of each matrix."""
    shape = BatchShape(1, 64, 1, TOKENS)
    plain, four, eight = (
        trace(meta_model(config(), torch.bfloat16, frozen_bits=FrozenBits(bits)), shape, True)
        for bits in (0, 4, 8)
    )
    assert four.kept == plain.kept
    inputs = SIZES["num_hidden_layers"] * (3 * SIZES["hidden_size"] + SIZES["intermediate_size"])
    assert (
        0.5 < (eight.kept - plain.kept) / (64 * inputs * 2) < 1.05
    )  # attention keeps some of them in any case
