"""The miniature decoder: a small LLaMA pretrained on dialogues in words alone, with plain causal attention."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helper.miniature.words import dialogue_in_words

Log = Callable[[str], None]
_PADDING = 0  # the unknown token, which no dialogue holds


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: its share of all steps, captions in a dialogue at most, and rounds."""

    share: float
    captions: int
    rounds: int


@dataclass(frozen=True)
class DecoderRecipe:
    """Size and schedule.

    Short dialogues come first: in a long one, earlier questions speak of things that are not there ("is there a green
    circle?"), and a decoder that has not yet learned to look into the caption is misled by them.
    """

    hidden_size: int = 128
    layers: int = 5
    heads: int = 4
    intermediate_size: int = 352
    steps: int = 4000
    rounds_per_step: int = 128
    curriculum: tuple[Stage, ...] = (Stage(0.25, 1, 2), Stage(0.15, 2, 3), Stage(0.15, 3, 4), Stage(0.45, 3, 12))
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    other_tokens_weight: float = 0.5
    report_every: int = 100


@dataclass(frozen=True)
class TextBatch:
    """`ids` [B, S]; `answer` [B, S]: index of the answer a token belongs to, -1 elsewhere; `kinds` of those answers."""

    ids: torch.Tensor
    answer: torch.Tensor
    kinds: list[list[str]]


def build_decoder(recipe: DecoderRecipe, vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def pretrain_decoder(
    recipe: DecoderRecipe,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    log: Log = print,
    on_report: Callable[[LlamaForCausalLM], None] | None = None,
    decoder: LlamaForCausalLM | None = None,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """Trains on freshly drawn dialogues: on the answers with their EOS and, with less weight, on all other text.

    The other text is no ballast: questions speak of what the captions say, so that predicting them teaches the decoder
    to look things up long before it can answer.

    Args:
        decoder: one to go on with; a new one by default.

    Returns:
        The decoder in float32, and its accuracy by kind of question on held-out scenes told in words.
    """
    decoder = decoder or build_decoder(recipe, len(tokenizer), seed)
    log(f"decoder: {sum(each.numel() for each in decoder.parameters()):,} parameters, {recipe}")
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(recipe, step))
    rng, start, accuracy = np.random.default_rng(seed), time.monotonic(), {}
    for step in range(1, recipe.steps + 1):
        stage = _stage_at(recipe, step)
        dialogues = recipe.rounds_per_step // stage.rounds
        batch = draw_batch(rng, tokenizer, dialogues, stage.captions, stage.rounds)
        logits = decoder(batch.ids, use_cache=False).logits[:, :-1]  # [B, S-1, V]
        losses = F.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
        answers, others = batch.answer[:, 1:] >= 0, (batch.answer[:, 1:] < 0) & (batch.ids[:, 1:] != _PADDING)
        loss = losses[answers].mean()
        objective = loss + recipe.other_tokens_weight * losses[others].mean()
        optimizer.zero_grad()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % recipe.report_every == 0 or step == recipe.steps:
            last = step == recipe.steps
            asked = recipe.curriculum[-1] if last else stage
            accuracy = evaluate_decoder(decoder, tokenizer, seed + 1, 64, asked.captions, asked.rounds)
            told = " ".join(f"{kind} {share:.2f}" for kind, share in accuracy.items())
            elapsed = time.monotonic() - start
            log(f"step {step}/{recipe.steps} {stage} loss {loss.item():.4f} | {told} | {elapsed:.0f} s")
            if on_report is not None:
                on_report(decoder)
    return decoder, accuracy


@torch.no_grad()
def evaluate_decoder(
    decoder: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    dialogues: int,
    captions: int = 3,
    rounds: int = 12,
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, by kind and `overall`, on held-out scenes in words."""
    rng = np.random.default_rng(seed)
    right, total = Counter(), Counter()
    for _ in range(max(1, dialogues // 32)):
        batch = draw_batch(rng, tokenizer, min(dialogues, 32), captions, rounds, held_out=True)
        hit = decoder(batch.ids, use_cache=False).logits[:, :-1].argmax(-1) == batch.ids[:, 1:]  # [B, S-1]
        for row, kinds in enumerate(batch.kinds):
            for index, kind in enumerate(kinds):
                won = bool(hit[row][batch.answer[row, 1:] == index].all())
                for name in (kind, "overall"):
                    total[name] += 1
                    right[name] += won
    return {name: right[name] / total[name] for name in sorted(total)}


def draw_batch(
    rng: np.random.Generator,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: int,
    images: int,
    rounds: int,
    held_out: bool = False,
) -> TextBatch:
    """Draws dialogues over one to `images` captions: four in five number them, half name them before the caption."""
    rows = []
    for _ in range(dialogues):
        written = dialogue_in_words(
            rng,
            images=int(rng.integers(1, images + 1)),
            rounds=rounds,
            held_out=held_out,
            numbered=rng.random() < 0.8,
            name_first=rng.random() < 0.5,
        )
        encoded = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
        answer_at = np.full(len(written.text), -1)
        for index, (begin, end, _) in enumerate(written.answers):
            answer_at[begin:end] = index
        starts = np.array(encoded["offset_mapping"])[:, 0]
        rows.append((encoded["input_ids"], answer_at[starts], [kind for _, _, kind in written.answers]))
    length = max(len(ids) for ids, _, _ in rows)
    # Padded on the right: causal attention then needs no mask.
    ids = np.full((dialogues, length), _PADDING)
    answer = np.full((dialogues, length), -1)
    for row, (row_ids, row_answer, _) in enumerate(rows):
        ids[row, : len(row_ids)] = row_ids
        answer[row, : len(row_ids)] = row_answer
    return TextBatch(torch.from_numpy(ids), torch.from_numpy(answer), [kinds for _, _, kinds in rows])


def _stage_at(recipe: DecoderRecipe, step: int) -> Stage:
    borders = np.cumsum([stage.share for stage in recipe.curriculum]) * recipe.steps
    return recipe.curriculum[min(int(np.searchsorted(borders, step)), len(recipe.curriculum) - 1)]


def _rate(recipe: DecoderRecipe, step: int) -> float:
    """Linear warm-up, then a cosine down to 3 %."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))
    return warm * (0.03 + 0.97 * cosine)


__all__ = ["DecoderRecipe", "Stage", "TextBatch", "build_decoder", "draw_batch", "evaluate_decoder", "pretrain_decoder"]
