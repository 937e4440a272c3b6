"""Models of real sizes with random weights, whose attention can be changed while they stand."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import PIL.Image
import torch
from transformers import AutoTokenizer, CLIPImageProcessor, LlamaConfig, SiglipVisionConfig

from benchmarks import two_softmaxes
from benchmarks.turns import add_run_flags
from utils.commands import ROOT
from utils.conversation import Image
from utils.model import VisualChatConfig, VisualChatForConditionalGeneration, VisualChatProcessor

SIDE, PATCH = 224, 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2  # 256

_VOCABULARY = 32_000
DECODERS = {  # width, inner width, layers, heads of queries, heads of keys
    "tiny": (256, 688, 4, 4, 4),
    "120m": (768, 2048, 12, 12, 12),
    "1b": (2048, 5504, 18, 16, 16),
    "7b": (4096, 11008, 32, 32, 32),
}
ENCODERS = {
    "tiny": (192, 768, 4, 3),
    "120m": (384, 1536, 12, 6),
    "1b": (1024, 4096, 24, 16),
    "7b": (1024, 4096, 24, 16),
}
"""Encoder beside each decoder (width, inner width, layers, heads): the larger ones are a ViT-L/14."""

ATTENTIONS = {
    "ours": ("mmca", "mmca", "full"),
    "ours, images without MLPs": ("mmca", "mmca", "no_mlp"),
    "ours, images in no layer": ("mmca", "mmca", "none"),
    "dense as in 2023": ("mmca", two_softmaxes.NAME, "full"),
    "causal": ("causal", "sdpa", "full"),
}
"""The model's and the decoder's attention for each contender, and what images go through."""


def add_model_flags(parser: argparse.ArgumentParser, size: str = "120m", rounds: int = 5) -> None:
    """The flags of a benchmark of one model: its size and number type, where it runs, and how often it is timed."""
    parser.add_argument("--size", choices=DECODERS, default=size)
    add_run_flags(parser, rounds, "float32")


def model_of(arguments: argparse.Namespace) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """The `random_model` that those flags ask for, on as many threads."""
    torch.set_num_threads(arguments.threads)
    return random_model(arguments.size, getattr(torch, arguments.dtype), arguments.device)


def random_model(
    size: str, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """A model whose images take 256 tokens, under multi-modal causal attention."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny_llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token = tokenizer.eos_token
    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    processor = VisualChatProcessor(images, tokenizer, image_seq_length=IMAGE_TOKENS)
    width, inner, layers, heads, key_heads = DECODERS[size]
    decoder = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
    )
    width, inner, layers, heads = ENCODERS[size]
    encoder = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = VisualChatConfig(
        vision_config=encoder,
        text_config=decoder,
        attention="mmca",
        image_token_id=processor.image_token_id,
        image_seq_length=IMAGE_TOKENS,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = VisualChatForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval(), processor


@contextmanager
def attention(model: VisualChatForConditionalGeneration, contender: str) -> Iterator[None]:
    """The same weights under another attention."""
    decoder = model.model.language_model.config
    config = model.config
    known = config.attention, decoder._attn_implementation, config.image_layers
    config.attention, decoder._attn_implementation, config.image_layers = ATTENTIONS[contender]
    try:
        yield
    finally:
        config.attention, decoder._attn_implementation, config.image_layers = known


def described(model: VisualChatForConditionalGeneration) -> str:
    """Sizes in a line."""
    counts = [
        sum(parameter.numel() for parameter in part.parameters()) / 1e6
        for part in (model.model.language_model, model.model.vision_tower)
    ]
    decoder = model.config.text_config
    return (
        f"decoder of {counts[0]:,.0f} million random parameters ({decoder.num_hidden_layers} layers of width"
        f" {decoder.hidden_size}), encoder of {counts[1]:,.0f} million, {IMAGE_TOKENS} tokens an image,"
        f" {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    )


def noise(number: int) -> Image:
    """A picture unlike all others."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image(PIL.Image.fromarray(pixels), f"picture {number}")


def words(count: int, first: str) -> str:
    """A text of `count` words that starts like no other: so much is new in a dialogue that ends with it."""
    return " ".join([first, *(["red", "circle", "square", "where"] * count)[: count - 1]])
