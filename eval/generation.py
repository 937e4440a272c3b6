"""Answers to dialogues, computed in batches: all dialogues advance together, round by round.

`with_sound_images` and `with_askable_texts` check dialogues before a model is loaded: one with a damaged image, or a
text that cannot be asked, is left out and listed. `Parts` keeps each part on the disk as soon as it is answered, so
that an interrupted run goes on; under a launcher (`torchrun --nproc_per_node 8 -m eval.batch_generation ...`) the
processes share the parts out.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel
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
from chat.images import LoadedImage, open_image
from eval.dialogues import BadDialogue, EvalDataError, EvalDialogue, EvalSet
from utils import distributed
from utils.atomic import atomic_write
from utils.conversation import Conversation, Image, ImageError, Turn, longest_dialogue

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
        chooser = self._generator.chooser(self._settings.sampling)  # of its own, whatever the others draw
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


Answers = list[list[str | None]]
"""By dialogue and turn."""


@dataclass(frozen=True)
class Parts:
    """Where the answers of a run are kept until all are there.

    `key` stands for everything that an answer depends on: what was kept under another one is not used.
    """

    folder: Path
    key: str
    size: int

    def answer(
        self,
        dialogues: Sequence[EvalDialogue],
        run: Callable[[Sequence[EvalDialogue]], Answers],
        advance: Callable[[int], None] = lambda questions: None,
    ) -> Answers | None:
        """All answers, in the main process; None in the others. Every process calls, with a `run` of its own.

        `advance` is told of the questions that need not be asked again.
        """
        starts = range(0, len(dialogues), self.size)
        for number, start in enumerate(starts):
            part = dialogues[start : start + self.size]
            if number % distributed.world_size() != distributed.rank():
                continue
            if self._kept(number) is None:
                answers = run(part)
                atomic_write(self._file(number), json.dumps({"key": self.key, "answers": answers}))
            else:
                advance(sum(len(dialogue.turns) for dialogue in part))
        distributed.barrier()
        if not distributed.is_main_process():
            return None
        kept = [self._kept(number) for number in range(len(starts))]
        assert None not in kept, "each process has written its parts"
        return [answers for part in kept if part is not None for answers in part]

    def clear(self) -> None:
        """Remove what was kept, once the results are written."""
        if distributed.is_main_process():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def _kept(self, number: int) -> Answers | None:
        try:
            content = json.loads(self._file(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return content["answers"] if content["key"] == self.key else None


def key_of(checkpoint: Path, dialogues: Sequence[EvalDialogue], settings: object) -> str:
    """What answers depend on, as one short text: the checkpoint's files, the questions, the settings."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    asked = [
        (each.system, [(turn.question, turn.image_path, turn.references) for turn in each.turns])
        for each in dialogues
    ]
    content = repr((str(checkpoint.resolve()), stamps, asked, settings))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


_NAMED = 3  # bad dialogues in a message
_ANY_ANSWER = "-"  # in the place of those that the model will give


def with_sound_images(found: EvalSet) -> EvalSet:
    """The set without the dialogues of which an image cannot be decoded; each image is looked at once."""
    looked_at: dict[Image, ImageError | None] = {}

    def check(dialogue: EvalDialogue) -> None:
        for image in (image for turn in dialogue.turns for image in turn.images):
            if image not in looked_at:
                looked_at[image] = _fault(image)
            if (fault := looked_at[image]) is not None:
                raise fault
        progress.update()

    with tqdm(total=len(found.dialogues), desc="checking images", delay=5, leave=False) as progress:
        return found.checked(check)


def with_askable_texts(
    found: EvalSet, processor: ProcessorMixin, config: PreTrainedConfig, settings: GenerationSettings
) -> EvalSet:
    """The set without the dialogues that a checkpoint's processor refuses, or whose first question leaves no room
    for an answer.

    Raises `EvalDataError` where references are to be the history and one is missing.
    """
    longest = longest_dialogue(config, settings.max_seq_len)

    def check(dialogue: EvalDialogue) -> None:
        for turn in dialogue.turns:
            for text in (dialogue.name, turn.kind, *turn.references):
                if not text.isascii() and text.encode(errors="replace").decode() != text:
                    raise ValueError(
                        "a reference or a kind contains half a character, a lone surrogate (\\ud800 to \\udfff)"
                    )
        turns, last = [], len(dialogue.turns) - 1
        for number, asked in enumerate(dialogue.turns):
            answer = (
                None if number == last else history_answer(dialogue, number, _ANY_ANSWER, settings.history)
            )
            turns.append(Turn(asked.question, answer, asked.images))
        whole = Conversation(tuple(turns), dialogue.name, dialogue.system)
        processor.encode(whole, load_images=False)
        first = len(processor.encode(whole.until_answer(0), load_images=False).input_ids)
        if first >= longest:
            raise ValueError(
                f"its first question takes {first:,} tokens and leaves no room for an answer within {longest:,}"
                " (--max_seq_len, at most the decoder's positions)"
            )

    return found.checked(check)


def write_bad(path: Path, bad: Sequence[BadDialogue]) -> None:
    """List bad dialogues in a file, a JSON object a line; without any, the file of an earlier run is removed."""
    if bad:
        lines = "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in bad)
        atomic_write(path, lines.encode("utf-8", "backslashreplace"))
    else:
        path.unlink(missing_ok=True)


def told(found: EvalSet, path: Path) -> str:
    """One line about the bad dialogues, which are listed in the file `path`."""
    count, total = len(found.bad), len(found.bad) + len(found.dialogues)
    named = "; ".join(f"{each.dialogue!r}: {each.reason}" for each in found.bad[:_NAMED])
    more = f"; and {count - _NAMED:,} more" if count > _NAMED else ""
    return f"{count:,} of {total:,} dialogues cannot be asked, listed in {path}: {named}{more}"


def _fault(image: Image) -> ImageError | None:
    try:
        image.pixels(1)  # a JPEG at the smallest fraction: quick, and damage shows all the same
    except ImageError as error:
        return error
    return None
