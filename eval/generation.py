"""Answers to dialogues, computed in batches: all dialogues advance together, round by round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.generation import (
    Generator,
    ImageKVStore,
    Prompt,
    Request,
    Sampling,
    recordable,
    store_if_possible,
)
from chat.loaded_images import LoadedImage, open_image
from eval.dialogues import EvalDataError, EvalDialogue
from utils.context_length import longest_dialogue
from utils.conversation import Conversation, Image, Turn

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
class _Asked:
    """One dialogue's question in this round; `room`: tokens of an answer at most."""

    dialogue: int
    conversation: Conversation
    ids: np.ndarray  # [S]
    is_image: np.ndarray  # [S]
    room: int


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
        image_store: ImageKVStore | None = None,
        keep_images: bool = True,
    ) -> None:
        self._model = model.eval()
        self._processor = processor
        self._settings = replace(settings, max_seq_len=longest_dialogue(model.config, settings.max_seq_len))
        self.image_store = (
            store_if_possible(self._model, processor, self._settings.max_seq_len, shared=image_store)
            if keep_images
            else None
        )
        self._generator = Generator(self._model, processor, self.image_store)
        self._open: Callable[[Image], LoadedImage] = lru_cache(_OPENED)(open_image)

    def run(
        self, dialogues: Sequence[EvalDialogue], advance: Callable[[int], None] = lambda questions: None
    ) -> list[list[str | None]]:
        """The answers by dialogue and turn; None where a dialogue had outgrown `max_seq_len`.

        `advance` is told after each batch how many questions it answered. Raises `EvalDataError` where the
        references should be the history and one is missing.
        """
        answers: list[list[str | None]] = [[] for _ in dialogues]
        for turn in range(max(len(dialogue.turns) for dialogue in dialogues)):
            asked = []
            for number, dialogue in enumerate(dialogues):
                if turn == len(answers[number]) < len(dialogue.turns):
                    asked.append(self._asked(number, dialogue, answers[number]))
            for each in (each for each in asked if each.room < 1):
                answers[each.dialogue].append(None)
                advance(1)
            asked = _in_order([each for each in asked if each.room > 0])
            for start in range(0, len(asked), self._settings.batch_size):
                batch = asked[start : start + self._settings.batch_size]
                requests = [self._request(each) for each in batch]
                for each, answer in zip(batch, self._generator.answers(requests), strict=True):
                    answers[each.dialogue].append(answer)
                advance(len(batch))
        return answers

    def _asked(self, number: int, dialogue: EvalDialogue, answers: Sequence[str | None]) -> _Asked:
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
        return _Asked(number, conversation, ids, is_image, room)

    def _request(self, asked: _Asked) -> Request:
        images = tuple(self._processor.views([self._open(image) for image in asked.conversation.images]))
        chooser = self._generator.chooser(
            self._settings.sampling
        )  # of its own: no answer depends on the others
        return Request(Prompt(asked.ids, asked.is_image, images), asked.room, chooser)

    def _history(self, dialogue: EvalDialogue, turn: int, answer: str | None) -> str:
        given = recordable(answer or "", self._processor.tokenizer)
        return history_answer(dialogue, turn, given, self._settings.history)


def _in_order(asked: Sequence[_Asked]) -> list[_Asked]:
    """Prompts of like length share a batch, so that there is less padding; those about the same pictures stand
    together, so that more of what they start with is read once."""
    longest: dict[tuple[Image, ...], int] = {}
    for each in asked:
        images = each.conversation.images
        longest[images] = max(longest.get(images, 0), len(each.ids))
    group = {images: number for number, images in enumerate(longest)}

    def place(each: _Asked) -> tuple[int, int, int]:
        images, length = each.conversation.images, len(each.ids)
        return (longest[images], group[images], length) if images else (length, -1, 0)

    return sorted(asked, key=place)
