"""Tiny random decoders, encoders and tokenizers, saved as ordinary Hugging Face folders."""

from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)

SENTENCES = [
    "You are a powerful vision-language assistant.",
    "### Image 1: ### Question: What colour is the circle? ### Answer: red",
    "### Image 2: ### Question: How many squares are there? ### Answer: three",
] * 5


def llama_config(**changes) -> LlamaConfig:
    """Two layers, four heads of width 8, two key-value heads."""
    shape = dict(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return LlamaConfig(**{**shape, **changes})


def clip_vision_config() -> CLIPVisionConfig:
    """Images of 16 pixels in patches of 8: four tokens and the class token."""
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A sentencepiece tokenizer of LLaMA's kind: byte fallback, unk 0, bos 1, eos 2, and no padding token."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("\n".join(SENTENCES))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, tokenizer_folder) -> Path:
    """A decoder with its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = LlamaTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A whole CLIP, text encoder included, with its image processor."""
    folder = tmp_path_factory.mktemp("clip")
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    torch.manual_seed(1)
    CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(), vision_config=clip_vision_config().to_dict(), projection_dim=16
        )
    ).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder)
    return folder
