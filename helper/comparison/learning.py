"""Trains one form on one seed's samples, with the model, collator and groups of every training, and asks it."""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from helper.comparison.cells import PARTS, Form, Plan, Row
from helper.comparison.task import Sample, Task, commonest
from training.metrics.mfu import StepFlops, visible_pairs
from training.parameter_groups import parameter_groups
from utils.data import Collator, EncodedDataset
from utils.data import Sample as EncodedSample
from utils.model.building import LoraSettings, build_visual_chat
from utils.model.loss import Supervised

BETAS = (0.9, 0.95)
_LONGEST = 2048  # tokens of a conversation, at most
_ASKED_TOGETHER = 16


class Learner:
    """A model with a random projection, and its optimizer."""

    def __init__(self, form: Form, rate: float, seed: int, plan: Plan, task: Task) -> None:
        torch.manual_seed(seed)
        self.form, self.rate, self.plan, self.task = form, rate, plan, task
        self.model, self.processor = build_visual_chat(
            str(task.decoder),
            str(task.encoder),
            attention=form.attention,
            image_layers=form.image_layers,
            image_gate=form.image_gate,
            image_summary=form.image_summary,
            lora=LoraSettings(lang_dim=plan.lora, lang_module_name="self_attn"),
            dtype=torch.bfloat16,
        )
        if form.attention == "causal":
            # torch's fused attention for the CPU takes four times as long as this at so few tokens.
            self.model.model.language_model.config._attn_implementation = "eager"
        self.learning = [each for each in self.model.parameters() if each.requires_grad]
        for parameter in self.learning:  # the frozen weights stay in bfloat16
            parameter.data = parameter.data.float()
        self.model.get_input_embeddings().register_forward_hook(_rounded)
        groups = parameter_groups(
            self.model,
            rate,
            plan.embedding_rate,
            weight_decay=0.0,
            gate_learning_rate=plan.gate_rate,
            lora_learning_rate=plan.lora_rate,
        )
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / plan.warmup)
        )
        self.collator = Collator(self.processor.tokenizer.pad_token_id)
        self.flops = StepFlops.of(self.model)
        self.losses: list[float] = []
        self.seconds, self.operations = 0.0, 0.0

    def learn(self, samples: Sequence[Sample]) -> None:
        """One step of the optimizer."""
        inputs = self._inputs(self._encoded(samples))
        started = time.process_time()
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(**inputs).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.seconds += time.process_time() - started
        self.losses.append(loss.item())
        self.operations += self._operations(inputs)

    @torch.no_grad()
    def right(self, samples: Sequence[Sample]) -> list[list[bool]]:
        """Of each sample, turn by turn: whether every token of the answer, its end included, is the likeliest one.

        That is what greedy generation gives, with the references as the history; a dialogue takes one pass.
        """
        self.model.eval()
        answers: list[list[bool]] = [[] for _ in samples]
        order = sorted(range(len(samples)), key=lambda number: len(samples[number].conversation.images))
        for start in range(0, len(order), _ASKED_TOGETHER):
            asked = order[start : start + _ASKED_TOGETHER]
            encoded = self._encoded([samples[number] for number in asked])
            inputs = self._inputs(encoded)
            wanted = Supervised.of(inputs.pop("labels"))
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self.model.model(**inputs, wanted_rows=wanted.rows).last_hidden_state
                likeliest = self.model.lm_head(hidden.flatten(0, 1)[wanted.rows]).argmax(dim=-1)
            hits = (likeliest == wanted.targets).numpy()
            rows, columns = np.divmod(wanted.rows.numpy(), inputs["input_ids"].shape[1])
            for row, number in enumerate(asked):
                turns = np.searchsorted(encoded[row].turn_ends, columns[rows == row] + 1, side="right")
                right = hits[rows == row]
                answers[number] = [bool(right[turns == turn].all()) for turn in np.unique(turns)]
        return answers

    def _encoded(self, samples: Sequence[Sample]) -> list[EncodedSample]:
        conversations = [sample.conversation for sample in samples]
        dataset = EncodedDataset(conversations, self.processor, _LONGEST, features=self.task.features)
        return [dataset[number] for number in range(len(dataset))]

    def _inputs(self, encoded: Sequence[EncodedSample]) -> dict[str, Any]:
        inputs = self.collator(encoded).inputs
        inputs.pop("supervised_tokens")
        return inputs

    def _operations(self, inputs: dict[str, Any]) -> float:
        real, kinds = inputs["attention_mask"].bool(), inputs["mm_token_type_ids"]
        positions = torch.arange(real.shape[1]).expand_as(real)
        pairs = float(visible_pairs(self.form.attention, positions, kinds, real))
        supervised = int((inputs["labels"][:, 1:] >= 0).sum())
        return self.flops.total(float(real.sum()), pairs, 0, supervised, float(kinds.sum()))


def _rounded(_embedding: nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
    """What a training in bfloat16 gives the decoder."""
    return embedded.bfloat16()


def search(form: Form, rate: float, plan: Plan, task: Task) -> Row:
    """The first samples of seed 0 with a learning rate; `last_loss` is the mean over the last half of the names."""
    learner = Learner(form, rate, 0, plan, task)
    for batch in _batches(task.singles(0), plan.search_singles, plan.batch):
        learner.learn(batch)
    before = len(learner.losses)
    for batch in _batches(task.names(0), plan.search_names, plan.batch):
        learner.learn(batch)
    last = learner.losses[(before + len(learner.losses)) // 2 :]
    return {"rate": rate, "last_loss": float(np.mean(last)), "losses": _rounded_list(learner.losses)}


def compare(form: Form, rate: float, seed: int, plan: Plan, task: Task) -> Row:
    """A training that is compared: what it answers after more and more samples, and what it cost until then."""
    learner = Learner(form, rate, seed, plan, task)
    held_out = task.questions(seed, plan)
    asked: list[Row] = []
    seen = dict.fromkeys(PARTS, 0)

    def learn(part: str, stream: Iterator[Sample], questions: Sequence[Sample]) -> None:
        ask_after = getattr(plan, f"asked_{part}")
        for batch in _batches(stream, max(ask_after, default=0), plan.batch):
            learner.learn(batch)
            seen[part] += len(batch)
            if seen[part] in ask_after:
                costs = {"seconds": round(learner.seconds, 2), "operations": learner.operations}
                asked.append({**seen, **costs, "part": part, "right": counted(learner, questions)})

    for part in PARTS:
        learn(part, getattr(task, part)(seed), getattr(held_out, part))
    others = {
        str(count): counted(learner, samples)["overall"] for count, samples in held_out.among_others.items()
    }
    guessed = {part: commonest(getattr(held_out, part)) for part in seen}
    found = {"rate": rate, "losses": _rounded_list(learner.losses), "commonest": guessed}
    return {**found, "asked": asked, "among_others": others}


def counted(learner: Learner, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Right answers and questions, of each kind and overall."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for sample, right in zip(samples, learner.right(samples), strict=True):
        for kind, is_right in zip(sample.kinds, right, strict=True):
            for name in ("overall", kind):
                counts[name][0] += is_right
                counts[name][1] += 1
    return dict(counts)


def _batches(samples: Iterator[Sample], count: int, size: int) -> Iterator[list[Sample]]:
    for start in range(0, count, size):
        yield list(itertools.islice(samples, min(size, count - start)))


def _rounded_list(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
