"""Tiny random models for all tests, in memory and as ordinary Hugging Face folders."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)

from utils.model import VisualChatConfig, VisualChatForConditionalGeneration
from utils.model.vision import image_size

SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SENTENCES = [
    "You are a powerful vision-language assistant.",
    "### Image 1: ### Question: What colour is the circle? ### Answer: red",
    "### Image 2: ### Question: How many squares are there? ### Answer: three",
] * 5


def llama_config(**changes) -> LlamaConfig:
    """Two layers, four heads of width 8, two key-value heads."""
    shape = dict(
        vocab_size=300, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, **SHAPE
    )
    return LlamaConfig(**{**shape, **changes})


def clip_config(side: int = 16) -> CLIPVisionConfig:
    """Images of `side` pixels in four patches: five tokens with the class token."""
    return CLIPVisionConfig(**SHAPE, image_size=side, patch_size=side // 2, projection_dim=16)


def visual_chat(**choices) -> VisualChatForConditionalGeneration:
    """A model without a folder: 50 words, of which 49 stands for an image; 5 tokens an image."""
    torch.manual_seed(0)
    text = llama_config(vocab_size=50, initializer_range=0.3, pad_token_id=0)
    places = dict(image_token_id=49, image_seq_length=5)
    config = VisualChatConfig(vision_config=clip_config(), text_config=text, **places, **choices)
    return VisualChatForConditionalGeneration(config).eval()


def moved(model, by: float = 0.1):
    """As after a training: whatever learns is another."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


def two_images(model) -> dict[str, torch.Tensor]:
    """What a model's forward takes: a row of text with two images of noise."""
    image = [model.config.image_token_id] * model.config.image_seq_length
    side = image_size(model.config.vision_config)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {"input_ids": torch.tensor([[1, 9, *image, 20, 21, *image, 22, 23]]), "pixel_values": pixels}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    """Of `two_images`."""
    return model.eval()(**two_images(model)).logits


def write_tokenizer(folder: Path, sentences: Sequence[str] = SENTENCES, **settings) -> LlamaTokenizer:
    """One of LLaMA's kind: BPE with byte fallback, unk 0, bos 1, eos 2, and no padding token."""
    with (folder / "tokenizer.model").open("wb") as file:
        shape = dict(model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=file, **{"vocab_size": 300, **shape, **settings}
        )
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_llama(folder: Path, tokenizer: LlamaTokenizer, **changes) -> None:
    """A decoder; its tokenizer is in the folder already, or is written too."""
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(vocab_size=len(tokenizer), **changes)).save_pretrained(folder)


def write_clip(folder: Path, seed: int | None = 1) -> None:
    """A vision encoder with its image processor; without a seed its weights go on from the generator's state."""
    if seed is not None:
        torch.manual_seed(seed)
    CLIPVisionModel(clip_config()).save_pretrained(folder)
    square = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=square).save_pretrained(folder)
