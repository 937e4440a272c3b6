"""The miniature decoder: a small LLaMA pretrained on words alone, with plain causal attention."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helper.miniature.words import WrittenText, dialogue_in_words, list_said_twice, quiz

Log = Callable[[str], None]
_PADDING = 0  # the unknown token, which no text holds


@dataclass(frozen=True)
class Stage:
    """A lesson: what its texts are like, and when it is over.

    It ends when `mastered` of the answers are right (a running mean), at the latest after `steps`. `captions` 0 means
    lists said twice, of up to `things` things of `words` words each, `shuffled` or not; otherwise dialogues of `rounds`
    rounds over up to so many captions, or a `quiz` about one.
    """

    steps: int
    texts: int
    things: int = 4
    captions: int = 0
    rounds: int = 1
    words: int = 3
    shuffled: bool = True
    quiz: bool = False
    mastered: float = 0.97


FULL_DIALOGUES = Stage(steps=300, texts=16, captions=3, rounds=8, mastered=2.0)

LESSONS = (
    Stage(steps=300, texts=128, things=2, words=2, shuffled=False),
    Stage(steps=400, texts=96, things=2, words=2),
    Stage(steps=300, texts=64, things=4, words=2),
    Stage(steps=600, texts=80, things=2, mastered=0.95),
    Stage(steps=400, texts=48, things=4, mastered=0.95),
    Stage(steps=500, texts=48, things=2, captions=1),
    Stage(steps=500, texts=64, things=2, captions=1, rounds=3, quiz=True, mastered=0.95),
    Stage(steps=500, texts=48, captions=1, rounds=4, quiz=True, mastered=0.95),
    Stage(steps=600, texts=32, captions=2, rounds=3),
    FULL_DIALOGUES,
)


@dataclass(frozen=True)
class DecoderRecipe:
    """Size and schedule.

    The lessons start with the shortest texts in which words must be bound to each other, because attention learns that
    a hundred times sooner where there is little else to look at. The last one lets the learning rates fall to zero.
    """

    hidden_size: int = 128
    layers: int = 5
    heads: int = 4
    intermediate_size: int = 352
    lessons: tuple[Stage, ...] = LESSONS
    matrix_learning_rate: float = 0.02
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    other_tokens_weight: float = 0.5
    report_every: int = 50


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
    first_lesson: int = 1,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """Trains on freshly drawn texts: on the answers with their EOS and, with less weight, on all other words.

    Args:
        decoder: one that went through the lessons before `first_lesson`, to go on with.

    Returns:
        The decoder in float32, and its accuracy by kind of question on held-out scenes told in words.
    """
    decoder = decoder or build_decoder(recipe, len(tokenizer), seed)
    log(f"decoder: {sum(each.numel() for each in decoder.parameters()):,} parameters, {recipe}")
    optimizers = _optimizers(recipe, decoder)
    rng, start, step = np.random.default_rng(seed), time.monotonic(), 0
    for number, stage in enumerate(recipe.lessons[first_lesson - 1 :], start=first_lesson):
        log(f"lesson {number}: {stage}")
        mastery = 0.0
        for place in range(1, stage.steps + 1):
            step += 1
            remaining = 1 - place / stage.steps if stage is recipe.lessons[-1] else 1.0
            batch = draw_batch(rng, tokenizer, stage)
            loss, hits = _train(
                recipe, decoder, optimizers, batch, min(step / recipe.warmup_steps, remaining)
            )
            mastery = 0.95 * mastery + 0.05 * np.mean([hit for _, hit in _outcomes(batch, hits)])
            over = mastery >= stage.mastered or place == stage.steps
            if place % recipe.report_every == 0 or over:
                log(f"step {step} loss {loss:.4f} mastery {mastery:.3f} | {time.monotonic() - start:.0f} s")
            if over:
                break
        if on_report is not None:
            on_report(decoder)
        if stage.captions:
            told = evaluate_decoder(decoder, tokenizer, seed + 1, stage)
            log("held-out " + " ".join(f"{kind} {share:.2f}" for kind, share in told.items()))
    return decoder, evaluate_decoder(decoder, tokenizer, seed + 1)


@torch.no_grad()
def evaluate_decoder(
    decoder: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, stage: Stage = FULL_DIALOGUES
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, by kind and `overall`, on held-out scenes in words."""
    rng = np.random.default_rng(seed)
    right, total = Counter(), Counter()
    while total["overall"] < 500:
        batch = draw_batch(rng, tokenizer, stage, held_out=True)
        hits = decoder(batch.ids, use_cache=False).logits[:, :-1].argmax(-1) == batch.ids[:, 1:]  # [B, S-1]
        for kind, hit in _outcomes(batch, hits):
            for name in (kind, "overall"):
                total[name] += 1
                right[name] += hit
    return {name: right[name] / total[name] for name in sorted(total)}


def draw_batch(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast, stage: Stage, held_out: bool = False
) -> TextBatch:
    """Draws the texts of one step of a lesson."""
    rows = []
    for _ in range(stage.texts):
        written = _draw_text(rng, stage, held_out)
        encoded = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
        answer_at = np.full(len(written.text), -1)
        for index, (begin, end, _) in enumerate(written.answers):
            answer_at[begin:end] = index
        starts = np.array(encoded["offset_mapping"])[:, 0]
        rows.append((encoded["input_ids"], answer_at[starts], [kind for _, _, kind in written.answers]))
    length = max(len(ids) for ids, _, _ in rows)
    # Padded on the right: causal attention then needs no mask.
    ids = np.full((len(rows), length), _PADDING)
    answer = np.full((len(rows), length), -1)
    for row, (row_ids, row_answer, _) in enumerate(rows):
        ids[row, : len(row_ids)] = row_ids
        answer[row, : len(row_ids)] = row_answer
    return TextBatch(torch.from_numpy(ids), torch.from_numpy(answer), [kinds for _, _, kinds in rows])


def _draw_text(rng: np.random.Generator, stage: Stage, held_out: bool) -> WrittenText:
    """A list, or a dialogue: four in five of those number the captions, half name them before the caption."""
    if stage.captions == 0:
        return list_said_twice(rng, stage.things, stage.words, shuffled=stage.shuffled)
    if stage.quiz:
        return quiz(rng, stage.things, stage.rounds, held_out=held_out)
    return dialogue_in_words(
        rng,
        images=int(rng.integers(1, stage.captions + 1)),
        rounds=stage.rounds,
        things=stage.things,
        held_out=held_out,
        numbered=rng.random() < 0.8,
        name_first=rng.random() < 0.5,
    )


def _optimizers(recipe: DecoderRecipe, decoder: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head and norms (Jordan et al., "Muon", 2024)."""
    matrices = [parameter for parameter in decoder.model.layers.parameters() if parameter.ndim == 2]
    inside = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in decoder.parameters() if id(parameter) not in inside]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _train(
    recipe: DecoderRecipe,
    decoder: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batch: TextBatch,
    rate: float,
) -> tuple[float, torch.Tensor]:
    """One step at `rate` times the learning rates: the loss of the answers, and which tokens were foreseen [B, S-1]."""
    logits = decoder(batch.ids, use_cache=False).logits[:, :-1]  # [B, S-1, V]
    targets = batch.ids[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    answers = batch.answer[:, 1:] >= 0
    loss = losses[answers].mean()
    others = losses[~answers & (targets != _PADDING)].mean()
    for optimizer, peak in zip(optimizers, (recipe.matrix_learning_rate, recipe.learning_rate), strict=True):
        optimizer.param_groups[0]["lr"] = peak * rate
        optimizer.zero_grad()
    (loss + recipe.other_tokens_weight * others).backward()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item(), logits.argmax(-1) == targets


def _outcomes(batch: TextBatch, hits: torch.Tensor) -> list[tuple[str, bool]]:
    """For every answer of the batch its kind, and whether all its tokens were foreseen."""
    return [
        (kind, bool(hits[row][batch.answer[row, 1:] == index].all()))
        for row, kinds in enumerate(batch.kinds)
        for index, kind in enumerate(kinds)
    ]


__all__ = [
    "FULL_DIALOGUES",
    "LESSONS",
    "DecoderRecipe",
    "Stage",
    "TextBatch",
    "build_decoder",
    "draw_batch",
    "evaluate_decoder",
    "pretrain_decoder",
]
