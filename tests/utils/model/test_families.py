"""Decoders and encoders of all families: joined, trained a step, saved in both forms and loaded again."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from tests import tiny
from utils.conversation import Conversation, Turn
from utils.conversation import Image as ConversationImage
from utils.model import LoraSettings, build_visual_chat, load_checkpoint, save_full, save_trained_only

pytestmark = pytest.mark.integration

SHAPE = dict(num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, **tiny.SHAPE)
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Decoder:
    """A decoder as its publisher ships it, but small. unused: rows of the embedding beyond the tokenizer's."""

    model: type
    config: type
    tokenizer: str
    changes: dict
    unused: int = 0


DECODERS = {
    "llama 2": Decoder(LlamaForCausalLM, LlamaConfig, "sentencepiece", {"num_key_value_heads": 4}),
    "llama 3": Decoder(LlamaForCausalLM, LlamaConfig, "llama_3", {"rope_parameters": LLAMA_3_ROPE}),
    "qwen 2.5": Decoder(Qwen2ForCausalLM, Qwen2Config, "qwen", {}, unused=7),
    "qwen 3, tied": Decoder(
        Qwen3ForCausalLM, Qwen3Config, "qwen", {"tie_word_embeddings": True, "head_dim": 16}, unused=3
    ),
    "qwen 3": Decoder(Qwen3ForCausalLM, Qwen3Config, "qwen", {"head_dim": 16}),
    "mistral": Decoder(MistralForCausalLM, MistralConfig, "sentencepiece", {"sliding_window": None}),
    "mistral, sliding": Decoder(MistralForCausalLM, MistralConfig, "llama_2", {"sliding_window": 16}),
}
ENCODERS = ["clip", "siglip", "open_clip", "qwen_vl", "siglip2_naflex", "dinov2", "dinov3"]
LORA_PLACES = {"open_clip": "resblocks.", "dinov2": "encoder.layer.", "dinov3": "model.layer."}


def without_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer as it is published: neither an image token nor one for padding."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [each for each in state["added_tokens"] if each["content"] != "<image>"]
    names = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")}
    names = {name: token for name, token in names.items() if token}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory, request):
    """Writes a decoder by its name in DECODERS, once."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            decoder = DECODERS[name]
            folder = made[name] = tmp_path_factory.mktemp("decoder")
            tokenizer = without_image_token(request.getfixturevalue(f"{decoder.tokenizer}_tokenizer"))
            tokenizer.save_pretrained(folder)
            rows = max(tokenizer.get_vocab().values()) + 1 + decoder.unused
            torch.manual_seed(len(made))
            decoder.model(decoder.config(vocab_size=rows, **{**SHAPE, **decoder.changes})).save_pretrained(
                folder
            )
        return made[name]

    return write


@pytest.fixture(scope="module")
def conversation(tmp_path_factory) -> Conversation:
    """Two rounds over two pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    images = []
    for number in range(2):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
        images.append(ConversationImage(path))
    turns = [
        Turn("How many red circles are there?", "There are two red circles.", (images[0],)),
        Turn("What is left of the blue square?", "The green triangle.", (images[1],)),
    ]
    return Conversation(turns)


def batch_of(processor, conversation) -> dict[str, torch.Tensor]:
    encoded = processor.encode(conversation)
    return {
        "input_ids": torch.from_numpy(encoded.input_ids)[None],
        "labels": torch.from_numpy(encoded.labels)[None],
        "mm_token_type_ids": torch.from_numpy(encoded.mm_token_type_ids)[None],
        "pixel_values": encoded.pixel_values,
    }


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**{name: each for name, each in batch.items() if name != "labels"}).logits


def train(model, batch, steps=2) -> list[float]:
    model.train()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


PAIRS = [(decoder, ENCODERS[number % len(ENCODERS)]) for number, decoder in enumerate(DECODERS)]
PAIRS += [("llama 2", encoder) for encoder in ENCODERS if ("llama 2", encoder) not in PAIRS]


@pytest.mark.parametrize("adapted", [False, True], ids=["embedding", "LoRA"])
@pytest.mark.parametrize(("decoder", "encoder"), PAIRS)
def test_built_trained_saved_and_loaded(
    decoder, encoder, adapted, decoder_folder, encoder_folders, conversation, tmp_path
):
    lora = None
    if adapted:
        vis_module = LORA_PLACES.get(encoder, "encoder.layers.")
        lora = LoraSettings(lang_dim=3, vis_dim=2, vis_module_name=vis_module, alpha=6)
    language, vision = str(decoder_folder(decoder)), str(encoder_folders[encoder])
    torch.manual_seed(0)
    model, processor = build_visual_chat(language, vision, lora=lora, dtype=torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    batch = batch_of(processor, conversation)
    known = stock.config.vocab_size
    text = {"input_ids": batch["input_ids"][batch["mm_token_type_ids"] == 0][None]}
    torch.testing.assert_close(
        logits_of(model, text)[..., :known], logits_of(stock, text), atol=2e-5, rtol=1e-4
    )

    frozen = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}
    losses = train(model, batch)
    assert losses[1] < losses[0]
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], before) for name, before in frozen.items())

    expected = logits_of(model, batch)
    for name, save in (("full", save_full), ("trained", save_trained_only)):
        save(model, processor, tmp_path / name)
        again, loaded_processor = load_checkpoint(tmp_path / name)
        assert torch.equal(batch_of(loaded_processor, conversation)["pixel_values"], batch["pixel_values"])
        close = dict(atol=2e-4, rtol=1e-3) if adapted and name == "full" else dict(atol=0, rtol=0)
        torch.testing.assert_close(logits_of(again, batch), expected, **close)


@pytest.mark.parametrize("decoder", DECODERS)
def test_generates_what_a_forward_says(decoder, decoder_folder, encoder_folders, conversation):
    torch.manual_seed(0)
    model, processor = build_visual_chat(str(decoder_folder(decoder)), str(encoder_folders["qwen_vl"]))
    batch = batch_of(processor, conversation)
    batch.pop("labels")
    mask = torch.ones_like(batch["input_ids"])
    answer = model.eval().generate(**batch, attention_mask=mask, max_new_tokens=5, min_new_tokens=5)
    ids = batch["input_ids"]
    for _ in range(5):
        kinds = torch.nn.functional.pad(
            batch["mm_token_type_ids"], (0, ids.shape[1] - batch["input_ids"].shape[1])
        )
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=kinds, pixel_values=batch["pixel_values"]).logits
        logits[..., [processor.image_token_id, processor.tokenizer.eos_token_id]] = -torch.inf
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(answer, ids)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_checkpoints_own_code_builds_every_encoder(
    encoder, decoder_folder, encoder_folders, conversation, tmp_path, monkeypatch
):
    """Its copies of our files, imported as those of a folder from elsewhere, under names of their own."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)  # of another test's folder
    torch.manual_seed(0)
    model, processor = build_visual_chat(str(decoder_folder("llama 3")), str(encoder_folders[encoder]))
    save_full(model, processor, tmp_path / "saved")
    name = "modeling_visual_chat.VisualChatForConditionalGeneration"
    own = get_class_from_dynamic_module(name, str(tmp_path / "saved"))
    assert own.__module__.startswith("transformers_modules.")
    batch = batch_of(processor, conversation)
    loaded = own.from_pretrained(tmp_path / "saved")
    package = type(loaded.config.vision_config).__module__.split(".")[0]
    assert package in ("transformers", "transformers_modules")
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))


@pytest.mark.parametrize("only", [False, True], ids=["all", "adapters only"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradient_checkpointing_reaches_the_adapters(
    encoder, only, decoder_folder, encoder_folders, conversation
):
    """Also where nothing that learns comes before them: neither pixels nor a frozen embedding have gradients."""
    name = LORA_PLACES.get(encoder, "encoder.layers.")
    lora = LoraSettings(lang_dim=2, vis_dim=2, vis_module_name=name)
    torch.manual_seed(0)
    model, processor = build_visual_chat(
        str(decoder_folder("llama 3")), str(encoder_folders[encoder]), lora=lora
    )
    batch = batch_of(processor, conversation)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
            elif only and "lora_A" not in parameter_name:
                parameter.requires_grad_(False)

    def gradients():
        model.train().zero_grad()
        model(**batch).loss.backward()
        return {
            each: parameter.grad for each, parameter in model.named_parameters() if parameter.requires_grad
        }

    plain = gradients()
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in plain.values())
    model.gradient_checkpointing_enable()
    for each, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[each], msg=each)
