"""The miniature decoder: a small LLaMA pretrained on words alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helper.miniature.lessons import FULL_DIALOGUES, LESSONS, Lesson
from helper.miniature.muon import Muon
from helper.miniature.probes import Probes
from helper.miniature.text_batches import TextBatch, draw_batch

Log = Callable[[str], None]


@dataclass(frozen=True)
class DecoderRecipe:
    """Size and schedule.

    The lessons begin with the shortest texts in which words must be bound to each other, because attention learns that
    a hundred times sooner where there is little else to look at. A share of `revisits` of the steps goes back to an
    earlier one.
    """

    hidden_size: int = 128
    layers: int = 6
    heads: int = 8
    intermediate_size: int = 352
    rope_theta: float = 1e6
    embedding_scale: float = 0.5
    lessons: tuple[Lesson, ...] = LESSONS
    matrix_learning_rate: float = 0.02
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    revisits: float = 0.15
    probed_layer: int = 2
    probes_weight: float = 0.5
    report_every: int = 100


def build_decoder(recipe: DecoderRecipe, vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    """A LLaMA whose tokens, at the start, are heard above what the layers add.

    At transformers' own start (one small deviation for all matrices) the average that attention adds drowns a token's
    identity, and binding words takes many times as long. Here layers start by adding nothing.
    """
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        rope_theta=recipe.rope_theta,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    decoder = LlamaForCausalLM(config)
    torch.nn.init.normal_(decoder.model.embed_tokens.weight, std=recipe.embedding_scale)
    for name, matrix in decoder.model.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(matrix)
        elif matrix.ndim == 2:
            torch.nn.init.normal_(matrix, std=recipe.hidden_size**-0.5)
    return decoder


def pretrain_decoder(
    recipe: DecoderRecipe,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    log: Log = print,
    keep: Callable[[LlamaForCausalLM], None] = lambda decoder: None,
    decoder: LlamaForCausalLM | None = None,
    first_lesson: int = 1,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """Trains on the answers, with their end, of freshly drawn texts, lesson after lesson.

    Args:
        keep: called with every line of the log, and so at each lesson's end: a stop then loses little.
        decoder: one that went through the lessons before `first_lesson`, to go on with.

    Returns:
        The decoder in float32, and its accuracy by kind of question on held-out scenes told in words.
    """
    decoder = decoder or build_decoder(recipe, len(tokenizer), seed)
    log(f"decoder: {sum(each.numel() for each in decoder.parameters()):,} parameters, seed {seed}")
    probes = Probes(tokenizer, recipe.hidden_size, recipe.probed_layer)
    optimizers = _optimizers(recipe, decoder, probes)
    rng, start, step = np.random.default_rng([seed, first_lesson]), time.monotonic(), 0
    torch.manual_seed(int(rng.integers(2**32)))  # for the noise of what stands for pictures
    for number, lesson in enumerate(recipe.lessons[first_lesson - 1 :], start=first_lesson):
        log(f"lesson {number}: {lesson.name}")
        mastery, asked, right = 0.0, Counter(), Counter()
        for place in range(1, lesson.steps + 1):
            step += 1
            revisited = recipe.lessons[rng.integers(number - 1)] if number > 1 else lesson
            today = revisited if rng.random() < recipe.revisits else lesson
            remaining = 1 - place / lesson.steps if lesson is recipe.lessons[-1] else 1.0
            batch = draw_batch(rng, tokenizer, today)
            rate = lesson.rate * min(1.0, step / recipe.warmup_steps, 2 * remaining)
            loss, hits = _train(recipe, decoder, probes, optimizers, batch, rate)
            if today is lesson:
                outcomes = _outcomes(batch, hits)
                asked.update(kind for kind, _ in outcomes)
                right.update(kind for kind, hit in outcomes if hit)
                mastery += (np.mean([hit for _, hit in outcomes]) - mastery) * max(0.03, 1 / place)
            over = place == lesson.steps or (place > 30 and mastery >= lesson.mastered)
            if place % recipe.report_every == 0 or over:
                shares = _shares(right, asked)
                log(
                    f"step {step} loss {loss:.4f} right {mastery:.3f}: {shares} | {time.monotonic() - start:.0f} s"
                )
                asked, right = Counter(), Counter()
                keep(decoder)
            if over:
                break
    return decoder, evaluate_decoder(decoder, tokenizer, seed + 1)


@torch.no_grad()
def evaluate_decoder(
    decoder: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, lesson: Lesson = FULL_DIALOGUES
) -> dict[str, float]:
    """Share of answers whose every token is the most likely one, by kind and `overall`, on held-out scenes in words."""
    rng = np.random.default_rng(seed)
    right, total = Counter(), Counter()
    while total["overall"] < 1000:
        batch = draw_batch(rng, tokenizer, lesson, held_out=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # for the noise of what stands for pictures
            hidden, _ = batch.read_by(decoder)
        logits = decoder.lm_head(hidden)
        hits = logits[:, :-1].argmax(-1) == batch.ids[:, 1:]  # [B, S-1]
        for kind, hit in _outcomes(batch, hits):
            for name in (kind, "overall"):
                total[name] += 1
                right[name] += hit
    return {name: round(right[name] / total[name], 4) for name in sorted(total)}


def _optimizers(
    recipe: DecoderRecipe, decoder: LlamaForCausalLM, probes: Probes
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for all else, the probes among it (Jordan et al., "Muon", 2024)."""
    matrices = [parameter for parameter in decoder.model.layers.parameters() if parameter.ndim == 2]
    inside = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in decoder.parameters() if id(parameter) not in inside]
    others += probes.parameters()
    optimizers = [
        Muon(matrices, lr=recipe.matrix_learning_rate),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        optimizer.param_groups[0]["peak"] = optimizer.param_groups[0]["lr"]
    return optimizers


def _train(
    recipe: DecoderRecipe,
    decoder: LlamaForCausalLM,
    probes: Probes,
    optimizers: list[torch.optim.Optimizer],
    batch: TextBatch,
    rate: float,
) -> tuple[float, torch.Tensor]:
    """One step at `rate` times the peak rates: the mean loss of answers, and which of their tokens were foreseen.

    Every answer counts alike, however long it is. The second is [B, S-1], False at all tokens that belong to no answer.
    """
    hidden, hidden_states = batch.read_by(decoder)  # [B, S, D]
    answers = batch.answer[:, 1:] >= 0
    targets = batch.ids[:, 1:][answers]
    logits = decoder.lm_head(hidden[:, :-1][answers])
    share = _shares_of_answers(batch.answer[:, 1:], answers)
    loss = (F.cross_entropy(logits, targets, reduction="none") * share).sum()
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["peak"] * rate
        optimizer.zero_grad()
    (loss + recipe.probes_weight * probes(batch, hidden_states)).backward()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    hits = torch.zeros_like(answers)
    hits[answers] = logits.argmax(-1) == targets
    return loss.item(), hits


def _shares_of_answers(answer: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """What each of the tokens at `answers` counts, [tokens]: the same for every answer together, one in all."""
    rows = torch.arange(len(answer))[:, None] * (int(answer.max()) + 1)
    _, index, size = (answer + rows)[answers].unique(return_inverse=True, return_counts=True)
    return 1 / (size[index] * len(size))


def _outcomes(batch: TextBatch, hits: torch.Tensor) -> list[tuple[str, bool]]:
    """For every answer of the batch its kind, and whether all its tokens were foreseen."""
    missed = (batch.answer[:, 1:] >= 0) & ~hits  # [B, S-1]
    wrong = {(int(row), int(batch.answer[row, place + 1])) for row, place in missed.nonzero()}
    return [
        (kind, (row, index) not in wrong)
        for row, kinds in enumerate(batch.kinds)
        for index, kind in enumerate(kinds)
    ]


def _shares(right: Counter, asked: Counter) -> str:
    return " ".join(f"{kind} {right[kind] / asked[kind]:.2f}" for kind in sorted(asked))


__all__ = [
    "DecoderRecipe",
    "build_decoder",
    "evaluate_decoder",
    "pretrain_decoder",
]
