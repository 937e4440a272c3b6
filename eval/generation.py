"""Answers to dialogues, computed in batches: all dialogues advance together, round by round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.answers import decoded_answer, recordable
from chat.decoding import eos_token_ids
from chat.sampling import Sampling
from eval.dialogues import EvalDataError, EvalDialogue
from utils.conversation import Conversation, Turn
from utils.data import Collator

History = Literal["generated", "reference"]


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    `max_seq_len` counts a whole dialogue's tokens, images included. `history` is what a later round of a
    dialogue sees as the answers before it: the model's own (as in a chat), or the references.
    """

    batch_size: int = 8
    max_new_tokens: int = 256
    max_seq_len: int = 4096
    history: History = "generated"
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class _Prompt:
    """One dialogue's question in this round."""

    dialogue: int
    conversation: Conversation
    length: int  # tokens
    room: int  # tokens of an answer at most


class DialogueRunner:
    """Asks a model all questions of evaluation dialogues."""

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, settings: GenerationSettings
    ) -> None:
        self._model = model.eval()
        self._processor = processor
        self._settings = settings
        self._eos = eos_token_ids(model, processor)
        self._collate = Collator(processor.tokenizer.pad_token_id, padding_side="left", pad_to_multiple_of=1)

    def run(
        self, dialogues: Sequence[EvalDialogue], advance: Callable[[int], None] = lambda questions: None
    ) -> list[list[str | None]]:
        """The answers by dialogue and turn; None where a dialogue had outgrown `max_seq_len`.

        `advance` is told after each batch how many questions it answered. Raises `EvalDataError` where the
        references should be the history and one is missing.
        """
        torch.manual_seed(self._settings.sampling.seed)
        answers: list[list[str | None]] = [[] for _ in dialogues]
        for turn in range(max(len(dialogue.turns) for dialogue in dialogues)):
            prompts = []
            for number, dialogue in enumerate(dialogues):
                if turn == len(answers[number]) < len(dialogue.turns):
                    prompts.append(self._prompt(number, dialogue, answers[number]))
            # Prompts of like length share a batch: less padding.
            prompts.sort(key=lambda prompt: prompt.length)
            for start in range(0, len(prompts), self._settings.batch_size):
                batch = prompts[start : start + self._settings.batch_size]
                for prompt, answer in zip(batch, self._answers(batch), strict=True):
                    answers[prompt.dialogue].append(answer)
                advance(len(batch))
        return answers

    def _prompt(self, number: int, dialogue: EvalDialogue, answers: Sequence[str | None]) -> _Prompt:
        turns = [
            Turn(asked.question, self._history(dialogue, turn, answer), asked.images)
            for turn, (asked, answer) in enumerate(zip(dialogue.turns, answers, strict=False))
        ]
        asked = dialogue.turns[len(answers)]
        conversation = Conversation((*turns, Turn(asked.question, None, asked.images)), dialogue.name)
        length = len(self._processor.encode(conversation, load_images=False).input_ids)
        room = min(self._settings.max_new_tokens, self._settings.max_seq_len - length)
        return _Prompt(number, conversation, length, room)

    def _history(self, dialogue: EvalDialogue, turn: int, answer: str | None) -> str:
        if self._settings.history == "generated":
            return recordable(answer or "", self._processor.tokenizer)
        reference = dialogue.turns[turn].reference
        if reference is None:
            raise EvalDataError(
                f"{dialogue.name!r}, turn {turn + 1}: there is no reference answer for later rounds to see;"
                " use --history generated"
            )
        return reference

    @torch.inference_mode()
    def _answers(self, prompts: Sequence[_Prompt]) -> list[str | None]:
        fitting = [prompt for prompt in prompts if prompt.room > 0]
        if not fitting:
            return [None] * len(prompts)
        batch = self._collate([self._processor.encode(prompt.conversation) for prompt in fitting])
        del batch["labels"]
        batch = {name: tensor.to(self._model.device) for name, tensor in batch.items()}
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(self._model.dtype)
        rooms = [prompt.room for prompt in fitting]
        generated = self._model.generate(**batch, generation_config=self._generation(max(rooms)))
        width = batch["input_ids"].shape[1]
        texts = [
            self._text(row[width : width + room].tolist()) for row, room in zip(generated, rooms, strict=True)
        ]
        answered = iter(texts)
        return [next(answered) if prompt.room > 0 else None for prompt in prompts]

    def _text(self, ids: list[int]) -> str:
        ends = [place for place, token in enumerate(ids) if token in self._eos]
        return decoded_answer(ids[: ends[0]] if ends else ids, self._processor.tokenizer)

    def _generation(self, max_new_tokens: int) -> GenerationConfig:
        sampling = self._settings.sampling
        drawing = {"do_sample": False}
        if sampling.temperature > 0:
            drawing = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=sorted(self._eos),
            pad_token_id=self._processor.tokenizer.pad_token_id,
            suppress_tokens=[self._processor.image_token_id],
            **drawing,
        )
