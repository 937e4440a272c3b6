"""Accuracy while training: at each evaluation the model answers held-out questions, always the same ones.

A question is asked with the reference answers of the rounds before it, as in training. Its own answer is generated
as the model's generation settings say (greedily) and compared by exact match (`utils.answers`). Each process asks a
share of the questions, in as many batches as any other: ZeRO-3 needs all of them in every forward.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.extension import Extension, Prepared
from training.metrics.loss_by_dataset import labels_of
from utils.answers import is_correct
from utils.commands import UsageError
from utils.data import IGNORED_LABEL, Batch, Collator, EncodedDataset, PackedDataset, Sample
from utils.distributed import decided_by_main, get_logger, rank, world_size

logger = get_logger(__name__)

LONGEST_ANSWER = 16
"""Tokens of a reference, with the one that ends it: a model hardly ever repeats a longer text word for word."""
_TAKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "mm_encoder_outputs")


@dataclass(frozen=True)
class Question:
    """Turn `turn` of a held-out conversation, both counted from 0; `group` is its kind, or else its dataset."""

    conversation: int
    turn: int
    group: str
    reference: str
    prompt_tokens: int
    answer_tokens: int  # with the one that ends it


class AnswerCheck:
    """A fixed sample of held-out questions, and the share of them that a model answers as the references do."""

    def __init__(
        self,
        held_out: EncodedDataset,
        tokenizer: PreTrainedTokenizerBase,
        count: int,
        seed: int,
        batch_size: int,
    ) -> None:
        """Draw `count` questions; all processes call. Raises `UsageError` where none can be asked.

        As many are asked at a time as fit into `batch_size` of the longest conversations.
        """
        self._held_out, self._tokenizer = held_out, tokenizer
        self._collate = Collator(tokenizer.pad_token_id, padding_side="left")
        drawn = decided_by_main(lambda: list(islice(self._questions(seed), count)))
        if not drawn:
            raise UsageError(
                f"--eval_generate {count}: no held-out question has a reference of {LONGEST_ANSWER} tokens at most and"
                " fits into --max_seq_len; leave the flag out"
            )
        self.questions = sorted(drawn, key=lambda each: each.prompt_tokens)  # like lengths share a batch
        self.max_new_tokens = max(each.answer_tokens for each in drawn)
        longest = self.questions[-1].prompt_tokens + self.max_new_tokens
        self._batch_size = max(1, batch_size * held_out.max_seq_len // longest)
        asked = (
            f"{len(drawn):,} held-out questions are answered, {self._batch_size} at a time in each process"
        )
        logger.info("at each evaluation %s, in %s tokens at most", asked, self.max_new_tokens)

    def measure(
        self,
        model: PreTrainedModel,
        prepare: Callable[[Batch], dict[str, Any]],
        prefix: str = "eval_accuracy",
    ) -> dict[str, float]:
        """The share of right answers, in all and of each group (`{prefix}/{group}`), and the seconds that it took.

        All processes call. `prepare` is told of each batch before it is generated, and brings its inputs to the device.
        """
        started = time.perf_counter()
        groups = sorted({each.group for each in self.questions})
        totals = torch.zeros(len(groups), 2, dtype=torch.float64)  # right, asked
        for questions, batch in self._batches():
            inputs = prepare(batch)
            taken = {name: inputs[name] for name in _TAKEN if name in inputs}
            generated = model.generate(**taken, max_new_tokens=self.max_new_tokens)
            totals = totals.to(generated.device)
            answers = generated[:, inputs["input_ids"].shape[1] :]
            said = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
            for question, answer in zip(questions, said, strict=False):
                right = float(is_correct(answer, [question.reference]))
                totals[groups.index(question.group)] += torch.tensor([right, 1.0]).to(totals)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(totals)
        right, asked = totals.sum(dim=0).tolist()
        each = {f"{prefix}/{group}": of[0] / of[1] for group, of in zip(groups, totals.tolist(), strict=True)}
        return {prefix: right / asked, **each, f"{prefix}_seconds": time.perf_counter() - started}

    def _batches(self) -> Iterator[tuple[Sequence[Question], Batch]]:
        """This process's questions; where it has fewer than others, batches without any that keep it in step."""
        mine = self.questions[rank() :: world_size()]
        most = len(self.questions[:: world_size()])
        for start in range(0, most, self._batch_size):
            questions = mine[start : start + self._batch_size]
            yield (
                questions,
                self._collate([self._prompt(each) for each in questions] or [self._held_out.empty_sample]),
            )

    def _prompt(self, question: Question) -> Sample:
        """What of its conversation is before the answer. Where an image of it is bad, this is something else."""
        sample = self._held_out[question.conversation]
        return sample.first_tokens(question.prompt_tokens, self._held_out.tokens_per_image)

    def _questions(self, seed: int) -> Iterator[Question]:
        """One question of each conversation in a drawn order, then another of each, until none is left."""
        texts = self._held_out.without_pixels(0)
        order = np.random.default_rng(seed).permutation(len(texts)).tolist()
        waiting: Iterable[Iterator[Question]] = (_questions_of(texts, index, seed) for index in order)
        while waiting:
            left = []
            for questions in waiting:
                for question in islice(questions, 1):
                    yield question
                    left.append(questions)
            waiting = left


def _questions_of(texts: EncodedDataset, index: int, seed: int) -> Iterator[Question]:
    """Those of a conversation in a drawn order; none where a record of it is bad, of which evaluation speaks."""
    sample = texts[index]
    if sample.bad:
        return
    conversations: Any = texts.conversations  # a mixture
    turns = conversations[index].turns
    label = labels_of(list(conversations.records_per_dataset))[conversations.places_of(index)[0].dataset]
    found, start = [], 0
    for number, end in enumerate(sample.turn_ends.tolist()):
        answer = start + np.flatnonzero(sample.labels[start:end] != IGNORED_LABEL)  # places of its tokens
        if len(answer) <= LONGEST_ANSWER and answer[0] + LONGEST_ANSWER <= texts.max_seq_len:
            kind, reference = turns[number].kind or label, turns[number].answer or ""
            found.append(Question(index, number, kind, reference, int(answer[0]), len(answer)))
        start = end
    np.random.default_rng([seed, index]).shuffle(found)
    yield from found


class AnswerAccuracy(Extension):
    """`--eval_generate`: the accuracy in each evaluation."""

    check: AnswerCheck | None = None  # where nothing is held out

    def prepare(self, parts: Prepared) -> None:
        held_out, arguments = parts.held_out, parts.arguments
        if held_out is not None:
            asked = held_out.conversations if isinstance(held_out, PackedDataset) else held_out
            count, batch_size = arguments.eval_generate, arguments.eval_batch_size
            self.check = AnswerCheck(asked, parts.processor.tokenizer, count, arguments.seed, batch_size)

    def add_to_evaluation(self, metrics: dict[str, float]) -> None:
        if self.check is not None:
            metrics |= self.check.measure(self.context.model, self.context.enter)
