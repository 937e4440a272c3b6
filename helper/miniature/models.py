"""The miniature's two models, for tests of the pipeline: a LLaMA and a CLIP, small and briefly trained.

The LLaMA is trained as language models are, on dialogues in words; the CLIP as CLIP was, on images and their captions.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tqdm import trange
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizerFast,
    PreTrainedTokenizerFast,
)

from helper.miniature.dialogues import DESCRIPTION, KINDS, make_dialogue
from helper.miniature.scenes import COLORS, NUMBERS, PICTURE_SIZE, POSITIONS, SHAPES, draw, sample_scene
from utils.model.chat_template import DEFAULT_SYSTEM

STORED = torch.float16  # as LLaMA-2's own files; half the size in the repository
_VOCABULARY = 512  # 3 control pieces, 256 bytes, the rest for the words of this world
_DIALOGUES, _IMAGES = 8, 48  # of a step


def make_decoder(folder: Path, steps: int, seed: int) -> None:
    """Train the tokenizer and the LLaMA, and write both into `folder`."""
    tokenizer = _train_tokenizer(folder, seed)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=6,
            num_attention_heads=8,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )
    rng = np.random.default_rng([seed, 1])
    optimizer, schedule = _optimization(decoder, steps)
    bar = trange(steps, desc="tiny_llama")
    for _ in bar:
        texts = [_dialogue_in_words(rng, int(rng.integers(1, 4)), 4) for _ in range(_DIALOGUES)]
        rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # Padded on the right, where causal attention needs no mask for it.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        loss = decoder(input_ids=ids, labels=labels, use_cache=False).loss
        _step(decoder, loss, optimizer, schedule)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    decoder.generation_config.do_sample = False
    decoder.save_pretrained(
        folder, state_dict={name: tensor.to(STORED) for name, tensor in decoder.state_dict().items()}
    )


def make_encoder(folder: Path, steps: int, seed: int) -> None:
    """Train the CLIP, and write it into `folder` with its image processor and the tokenizer of captions."""
    tokenizer = _caption_tokenizer()
    processor = CLIPImageProcessor(
        size={"shortest_edge": PICTURE_SIZE},
        crop_size={"height": PICTURE_SIZE, "width": PICTURE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    for part in (tokenizer, processor):
        part.save_pretrained(folder)
    torch.manual_seed(seed)
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 96}
    text = {
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"num_hidden_layers": 4, "image_size": PICTURE_SIZE, "patch_size": 32}
    model = CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=96))
    rng = np.random.default_rng([seed, 2])
    optimizer, schedule = _optimization(model, steps)
    bar = trange(steps, desc="tiny_clip")
    for _ in bar:
        scenes = [sample_scene(rng, held_out=False) for _ in range(_IMAGES)]
        pixels = processor([draw(scene, rng) for scene in scenes], return_tensors="pt")["pixel_values"]
        captions = tokenizer([scene.in_words() for scene in scenes], padding=True, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        logits = model(pixel_values=pixels, **{name: captions[name] for name in names}).logits_per_image
        targets = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        _step(model, loss, optimizer, schedule)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.to(STORED).save_pretrained(folder)


def _optimization(
    model: torch.nn.Module, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)


def _step(
    model: torch.nn.Module,
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _dialogue_in_words(rng: np.random.Generator, images: int, rounds: int) -> str:
    """A dialogue in training's template, in which captions stand in the place of images."""
    scenes = [sample_scene(rng, held_out=False) for _ in range(images)]
    text, shown = f"<s>{DEFAULT_SYSTEM}", 0
    for turn in make_dialogue(rng, scenes, rounds, kinds=(*KINDS, DESCRIPTION)):
        text += "\n\n"
        for scene in turn.new_scenes:
            shown += 1
            text += f"### Image {shown}: {scene.in_words()}\n"
        text += f"### Question: {turn.question}\n### Answer: {turn.answer}</s>"
    return text


def _train_tokenizer(folder: Path, seed: int) -> LlamaTokenizerFast:
    """Sentencepiece BPE with byte fallback, as LLaMA's, learnt on 2,000 dialogues; writes tokenizer.model."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = [line for _ in range(2000) for line in _dialogue_in_words(rng, 3, 8).split("\n")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,  # a file of its own would have its path written into it
        model_type="bpe",
        vocab_size=_VOCABULARY,
        byte_fallback=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return LlamaTokenizerFast.from_pretrained(folder, legacy=False)


def _caption_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word; the end token has the largest id, where CLIP pools."""
    words = {word for phrase in (*NUMBERS, *COLORS, *SHAPES, *POSITIONS) for word in phrase.split()}
    pieces = ["<pad>", "<unk>", "<start>", *sorted(words | {"object", "objects", ":", ","}), "<end>"]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", len(pieces) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=32,
    )
