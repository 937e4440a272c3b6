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
        {"attention": "causal"},
        {"dtype": torch.bfloat16},
        {"checkpointing": True},
        {"checkpointing": True, "dtype": torch.bfloat16, "images": 0},
        {"lora": LORA},
        {"lora": LORA, "checkpointing": True},
        {"packed": True},
        {"packed": True, "attention": "causal"},
        {"projector": "vit"},
        {"projector": "perceiver", "length": 640, "images": 2},
        {"images": 0},
        {"image_layers": "no_mlp"},
        {"image_layers": "none"},
        {"image_layers": "none", "attention": "cross", "packed": True},
        {"image_layers": "none", "checkpointing": True, "lora": LORA},
        {"rows": 1, "supervised": 0.25},
        {"text": Qwen3Config(**SIZES, head_dim=24)},
    ],
    ids=lambda settings: " ".join(f"{key}={value}"[:24] for key, value in settings.items()) or "plain",
)
def test_a_step_on_shapes_takes_what_the_real_one_does(settings):
    values = dict(rows=3, length=256, images=3, supervised=0.5, packed=False, dtype=torch.float32)
    values |= dict(attention="mmca", projector="linear", text=None, lora=None, checkpointing=False)
    values |= dict(image_layers="full")
    values |= settings
    made = config(values["attention"], values["projector"], values["text"], values["image_layers"])
    shape = BatchShape(
        values["rows"],
        values["length"],
        values["images"],
        made.image_seq_length,
        values["supervised"],
        values["packed"],
    )
    model = meta_model(made, values["dtype"], values["lora"], values["checkpointing"])
    foretold = trace(model, shape, keep_gradients=True)
    real = measured(made, values["dtype"], values["lora"], values["checkpointing"], shape)
    assert foretold.peak == pytest.approx(real, rel=0.05)
    assert sum(foretold.parts.values()) == foretold.peak
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())


def test_checkpointing_keeps_a_layer_s_input_and_no_more():
    shape = BatchShape(3, 256, 3, TOKENS, 0.5)
    without, with_it = (
        trace(meta_model(config(), torch.float32, None, checkpointing), shape, keep_gradients=False)
        for checkpointing in (False, True)
    )
    inputs = shape.rows * shape.length * SIZES["hidden_size"] * 4
    assert with_it.parts["decoder"] < (SIZES["num_hidden_layers"] + 3) * inputs < without.parts["decoder"]


def test_less_is_kept_where_less_is_learned():
    model = meta_model(config(), torch.float32)
    few, many = (trace(model, BatchShape(3, 256, 0, TOKENS, share), True) for share in (0.25, 0.5))
    assert few.kept < many.kept and few.parts["decoder"] <= many.parts["decoder"]


def test_images_that_skip_layers_keep_less():
    shape = BatchShape(3, 256, 6, TOKENS, 0.5)
    kept = [
        trace(meta_model(config(image_layers=choice), torch.float32), shape, True).kept
        for choice in ("full", "no_mlp", "none")
    ]
    assert kept[0] > 1.1 * max(kept[1:])


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
