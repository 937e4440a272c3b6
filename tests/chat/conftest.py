"""A tiny random model, its processor and pictures for it, as every chat and evaluation test uses them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from chat.generation.decoding import TextStream
from tests.tiny import write_clip, write_llama, write_tokenizer
from utils.conversation import Conversation
from utils.model import VisualChatForConditionalGeneration, VisualChatProcessor, build_visual_chat
from utils.model.checkpoint import save_full

SENTENCES = [
    "You are a powerful vision-language assistant.",
    "### Image 1: ### Question: What colour is the circle? ### Answer: red",
    "### Image 2: ### Question: How many squares are there in both pictures? ### Answer: three",
] * 5


def decoded_answer(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a whole answer, as its stream gives it."""
    stream = TextStream(tokenizer)
    return "".join([*map(stream.push, ids), stream.finish()])


def generated_answer(model, processor, conversation: Conversation, max_new_tokens: int, **settings) -> str:
    """What transformers' `generate` answers to the whole conversation, nothing cached."""
    encoded = processor.encode(conversation)
    ids = torch.from_numpy(encoded.input_ids)[None]
    generated = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=torch.from_numpy(encoded.mm_token_type_ids)[None],
        pixel_values=encoded.pixel_values,
        max_new_tokens=max_new_tokens,
        **settings,
    )
    return decoded_answer(generated[0, ids.shape[1] :].tolist(), processor.tokenizer)


@pytest.fixture(scope="session")
def base_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a random LLaMA (2 layers, width 32) and a random CLIP encoder (5 tokens an image)."""
    llama, clip = tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("clip")
    tokenizer = write_tokenizer(llama, SENTENCES, vocab_size=320)
    # The range of weights is far from ties between tokens.
    write_llama(llama, tokenizer, max_position_embeddings=2048, initializer_range=0.5)
    write_clip(clip, seed=None)
    return llama, clip


@pytest.fixture(scope="session")
def build(
    base_models: tuple[Path, Path],
) -> Callable[..., tuple[VisualChatForConditionalGeneration, VisualChatProcessor]]:
    """Builds a model with the named attention, image gate and way of images through the layers over the base models;
    a gate is open.
    """

    def build(
        attention: str, image_gate: str = "none", image_layers: str = "full"
    ) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
        torch.manual_seed(1)
        model, processor = build_visual_chat(
            *map(str, base_models), attention=attention, image_gate=image_gate, image_layers=image_layers
        )
        for factors in model.model.image_gate.parameters() if image_gate != "none" else ():
            factors.data.normal_()
        return model.eval(), processor

    return build


@pytest.fixture(scope="session")
def model_and_processor(build) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    return build("mmca")


@pytest.fixture(scope="session")
def checkpoint(model_and_processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_full(*model_and_processor, folder)
    return folder


@pytest.fixture
def work(model_and_processor) -> Iterator[dict[str, int]]:
    """Counts what really goes through the decoder and the encoder."""
    model, _ = model_and_processor
    work = {"tokens": 0, "images": 0}

    def count_tokens(module, args, kwargs):
        work["tokens"] += kwargs["inputs_embeds"].shape[1]

    def count_images(module, args, kwargs):
        work["images"] += (kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]).shape[0]

    hooks = [
        model.model.language_model.register_forward_pre_hook(count_tokens, with_kwargs=True),
        model.model.vision_tower.register_forward_pre_hook(count_images, with_kwargs=True),
    ]
    yield work
    for hook in hooks:
        hook.remove()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Ten different pictures as files."""
    paths = []
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        paths.append(tmp_path / f"picture {number}.png")
        PIL.Image.fromarray(pixels).save(paths[-1])
    return paths
