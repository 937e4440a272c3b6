"""Answers to dialogues, computed in batches: all dialogues advance together, round by round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.answers import decoded_answer, recordable
from chat.decoding import eos_token_ids
from chat.image_store import ImageStore, store_if_possible
from chat.opened_images import OpenedImage, open_image
from chat.sampling import Sampling, TokenChooser
from eval.batch_reading import BatchPrompt, BatchReader
from eval.batch_whole import WholeBatchReader
from eval.dialogues import EvalDataError, EvalDialogue
from utils.conversation import Conversation, Image, Turn
from utils.model.decoder import longest_dialogue

History = Literal["generated", "reference"]

_OPENED = 256  # images in memory, encoded


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    `max_seq_len` counts a whole dialogue's tokens, images included; it is lowered to what the decoder's positions
    reach. `history` is what a later round of a
    dialogue sees as the answers before it: the model's own (as in a chat), or the references.
    """

    batch_size: int = 8
    max_new_tokens: int = 256
    max_seq_len: int = 4096
    history: History = "generated"
    sampling: Sampling = field(default_factory=Sampling)


def history_answer(dialogue: EvalDialogue, turn: int, given: str, history: History) -> str:
    """What later rounds see as the answer of a turn (counted from 0): the one that the model gave, or the reference.

    Raises `EvalDataError` where that should be a reference and there is none.
    """
    if history == "generated":
        return given
    reference = dialogue.turns[turn].reference
    if reference is None:
        raise EvalDataError(
            f"{dialogue.name!r}, turn {turn + 1}: there is no reference answer for later rounds to see;"
            " use --history generated"
        )
    return reference


@dataclass(frozen=True)
class _Prompt:
    """One dialogue's question in this round."""

    dialogue: int
    conversation: Conversation
    ids: np.ndarray  # [S]
    is_image: np.ndarray  # [S]
    room: int  # tokens of an answer at most


_Read = Callable[[Sequence[_Prompt]], list[list[int]]]
"""From prompts to the tokens of their answers."""


class DialogueRunner:
    """Asks a model all questions of evaluation dialogues.

    Where the model's attention allows it, each picture is read once, however many questions are about it. An
    `image_store` may be shared with other runs and chats of the same model; without one it has its own, unless
    it should not `keep_images`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        settings: GenerationSettings,
        image_store: ImageStore | None = None,
        keep_images: bool = True,
    ) -> None:
        self._model = model.eval()
        self._processor = processor
        self._settings = replace(settings, max_seq_len=longest_dialogue(model.config, settings.max_seq_len))
        self._eos = eos_token_ids(model, processor)
        self.image_store = (
            store_if_possible(self._model, processor, self._settings.max_seq_len, shared=image_store)
            if keep_images
            else None
        )
        self._open: Callable[[Image], OpenedImage] = lru_cache(_OPENED)(open_image)

    def run(
        self, dialogues: Sequence[EvalDialogue], advance: Callable[[int], None] = lambda questions: None
    ) -> list[list[str | None]]:
        """The answers by dialogue and turn; None where a dialogue had outgrown `max_seq_len`.

        `advance` is told after each batch how many questions it answered. Raises `EvalDataError` where the
        references should be the history and one is missing.
        """
        torch.manual_seed(self._settings.sampling.seed)
        read = self._reading_whole() if self.image_store is None else self._reading_beside(self.image_store)
        answers: list[list[str | None]] = [[] for _ in dialogues]
        for turn in range(max(len(dialogue.turns) for dialogue in dialogues)):
            prompts = []
            for number, dialogue in enumerate(dialogues):
                if turn == len(answers[number]) < len(dialogue.turns):
                    prompts.append(self._prompt(number, dialogue, answers[number]))
            for prompt in (prompt for prompt in prompts if prompt.room < 1):
                answers[prompt.dialogue].append(None)
                advance(1)
            prompts = _in_order([prompt for prompt in prompts if prompt.room > 0])
            for start in range(0, len(prompts), self._settings.batch_size):
                batch = prompts[start : start + self._settings.batch_size]
                for prompt, ids in zip(batch, read(batch), strict=True):
                    answers[prompt.dialogue].append(decoded_answer(ids, self._processor.tokenizer))
                advance(len(batch))
        return answers

    def _prompt(self, number: int, dialogue: EvalDialogue, answers: Sequence[str | None]) -> _Prompt:
        turns = [
            Turn(asked.question, self._history(dialogue, turn, answer), asked.images)
            for turn, (asked, answer) in enumerate(zip(dialogue.turns, answers, strict=False))
        ]
        asked = dialogue.turns[len(answers)]
        last = Turn(asked.question, None, asked.images)
        conversation = Conversation((*turns, last), dialogue.name, dialogue.system)
        encoded = self._processor.encode(conversation, load_images=False)
        ids, is_image = encoded.input_ids, encoded.mm_token_type_ids == 1
        room = min(self._settings.max_new_tokens, self._settings.max_seq_len - len(ids))
        return _Prompt(number, conversation, ids, is_image, room)

    def _history(self, dialogue: EvalDialogue, turn: int, answer: str | None) -> str:
        given = recordable(answer or "", self._processor.tokenizer)
        return history_answer(dialogue, turn, given, self._settings.history)

    def _reading_whole(self) -> _Read:
        reader = WholeBatchReader(self._model, self._processor, self._settings.sampling, self._eos)

        def read(prompts: Sequence[_Prompt]) -> list[list[int]]:
            return reader.answers(
                [prompt.conversation for prompt in prompts], [prompt.room for prompt in prompts]
            )

        return read

    def _reading_beside(self, store: ImageStore) -> _Read:
        chooser = TokenChooser(self._settings.sampling, suppressed=[self._processor.image_token_id])
        reader = BatchReader(self._model, store, chooser, self._eos)

        def read(prompts: Sequence[_Prompt]) -> list[list[int]]:
            return reader.answers(
                [
                    BatchPrompt(prompt.ids, prompt.is_image, self._opened(prompt), prompt.room)
                    for prompt in prompts
                ]
            )

        return read

    def _opened(self, prompt: _Prompt) -> tuple[OpenedImage, ...]:
        return tuple(self._open(image) for image in prompt.conversation.images)


def _in_order(prompts: Sequence[_Prompt]) -> list[_Prompt]:
    """Prompts of like length share a batch, so that there is less padding; those about the same pictures stand
    together, so that more of what they start with is read once."""
    longest: dict[tuple[Image, ...], int] = {}
    for prompt in prompts:
        images = prompt.conversation.images
        longest[images] = max(longest.get(images, 0), len(prompt.ids))
    group = {images: number for number, images in enumerate(longest)}

    def place(prompt: _Prompt) -> tuple[int, int, int]:
        images = prompt.conversation.images
        return (longest[images], group[images], len(prompt.ids)) if images else (len(prompt.ids), -1, 0)

    return sorted(prompts, key=place)
