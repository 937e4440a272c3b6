"""The miniature visual encoder: a small CLIP, pretrained on pictures against captions with hard negatives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from helper.miniature.scenes import (
    COLORS,
    NUMBERS,
    PICTURE_SIZE,
    POSITIONS,
    SHAPES,
    Scene,
    draw,
    sample_scene,
)

_SIBLINGS = 4  # captions that differ in one detail share a batch, so that details must be told apart


@dataclass(frozen=True)
class EncoderRecipe:
    """Size and schedule of the contrastive pretraining."""

    hidden_size: int = 128
    layers: int = 4
    text_layers: int = 3
    heads: int = 4
    patch_size: int = 32
    word_scale: float = 0.5
    place_scale: float = 1.5
    projection_dim: int = 96
    steps: int = 1500
    families_per_step: int = 40
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    report_every: int = 250


def caption_tokenizer() -> PreTrainedTokenizerFast:
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


def picture_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": PICTURE_SIZE},
        crop_size={"height": PICTURE_SIZE, "width": PICTURE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )


def build_encoder(recipe: EncoderRecipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> CLIPModel:
    torch.manual_seed(seed)
    shared = {
        "hidden_size": recipe.hidden_size,
        "intermediate_size": 4 * recipe.hidden_size,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.projection_dim,
    }
    text = {
        **shared,
        "num_hidden_layers": recipe.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 32,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        **shared,
        "num_hidden_layers": recipe.layers,
        "image_size": PICTURE_SIZE,
        "patch_size": recipe.patch_size,
    }
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.projection_dim)
    )
    # CLIP's own start (0.02) drowns words and places in what the layers add: so small a model would then never learn
    # where a thing is, and its patch tokens would not say it.
    text_parts, vision_parts = model.text_model.embeddings, model.vision_model.embeddings
    torch.nn.init.normal_(text_parts.token_embedding.weight, std=recipe.word_scale)
    torch.nn.init.normal_(text_parts.position_embedding.weight, std=recipe.word_scale)
    torch.nn.init.normal_(vision_parts.position_embedding.weight, std=recipe.place_scale)
    return model


def pretrain_encoder(
    recipe: EncoderRecipe, seed: int, log: Callable[[str], None] = print
) -> tuple[CLIPModel, float]:
    """Trains on freshly drawn pictures; returns the CLIP and its held-out accuracy at choosing among siblings."""
    tokenizer = caption_tokenizer()
    model = build_encoder(recipe, tokenizer, seed)
    log(f"encoder: {sum(each.numel() for each in model.parameters()):,} parameters, {recipe}")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=recipe.steps,
        pct_start=min(0.5, recipe.warmup_steps / recipe.steps),
    )
    rng, start, accuracy = np.random.default_rng(seed), time.monotonic(), 0.0
    for step in range(1, recipe.steps + 1):
        pictures, captions = _draw_families(rng, tokenizer, recipe.families_per_step, held_out=False)
        logits = model(pixel_values=pictures, **captions).logits_per_image
        targets = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100.0))
        if step % recipe.report_every == 0 or step == recipe.steps:
            accuracy = evaluate_encoder(model, seed + 1)
            elapsed = time.monotonic() - start
            log(
                f"step {step}/{recipe.steps} loss {loss.item():.4f} siblings {accuracy:.3f} | {elapsed:.0f} s"
            )
    return model, accuracy


@torch.no_grad()
def evaluate_encoder(model: CLIPModel, seed: int, families: int = 64) -> float:
    """Share of held-out pictures whose own caption scores highest among its family (chance: 1 in 4)."""
    pictures, captions = _draw_families(
        np.random.default_rng(seed), caption_tokenizer(), families, held_out=True
    )
    logits = model(pixel_values=pictures, **captions).logits_per_image
    blocks = logits.view(families, _SIBLINGS, families, _SIBLINGS).diagonal(
        dim1=0, dim2=2
    )  # [4, 4, families]
    return float((blocks.argmax(1) == torch.arange(_SIBLINGS)[:, None]).float().mean())


def _draw_families(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, families: int, held_out: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scenes = [scene for _ in range(families) for scene in _family(rng, held_out)]
    pixels = np.stack([np.asarray(draw(scene, rng)) for scene in scenes])
    pictures = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    captions = tokenizer([scene.in_words() for scene in scenes], padding=True, return_tensors="pt")
    return pictures, {name: captions[name] for name in ("input_ids", "attention_mask")}


def _family(rng: np.random.Generator, held_out: bool) -> list[Scene]:
    """A scene and others that differ from it by one change, all of the same side of the split."""
    family = [sample_scene(rng, held_out=held_out)]
    while len(family) < _SIBLINGS:
        sibling = _with_one_change(rng, family[0])
        if sibling.held_out == held_out and sibling not in family:
            family.append(sibling)
        elif rng.random() < 0.05:  # few siblings on this side of the split: start from another scene
            family = [sample_scene(rng, held_out=held_out)]
    return family


def _with_one_change(rng: np.random.Generator, scene: Scene) -> Scene:
    things = list(scene.things)
    index = int(rng.integers(len(things)))
    change = rng.integers(4)
    if change == 0:
        things[index] = replace(things[index], color=list(COLORS)[rng.integers(len(COLORS))])
    elif change == 1:
        things[index] = replace(things[index], shape=SHAPES[rng.integers(len(SHAPES))])
    elif change == 2:
        free = sorted(set(range(len(POSITIONS))) - {thing.position for thing in things})
        if free:
            things[index] = replace(things[index], position=free[rng.integers(len(free))])
    else:
        other = int(rng.integers(len(things)))
        things[index], things[other] = (
            replace(things[index], color=things[other].color),
            replace(things[other], color=things[index].color),
        )
    return Scene(tuple(sorted(things)))


__all__ = [
    "EncoderRecipe",
    "build_encoder",
    "caption_tokenizer",
    "evaluate_encoder",
    "picture_processor",
    "pretrain_encoder",
]
