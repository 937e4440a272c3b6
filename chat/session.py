"""A dialogue with a model over images and rounds, in which each round costs only its new tokens."""

from collections.abc import Generator as Pieces
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.generation import (
    Answer,
    Generator,
    ImageKVStore,
    Prompt,
    Request,
    RoundStatistics,
    Sampling,
    recordable,
    store_if_possible,
)
from chat.images import ImageSource, LoadedImage, open_image
from chat.limits import MAX_IMAGES, MAX_NEW_TOKENS, MAX_SEQ_LEN
from utils.conversation import Conversation, ConversationError, Image, Turn, longest_dialogue
from utils.hub import checkpoint_folder


class ChatError(ValueError):
    """A question that cannot be asked; the message says what to do. The session is as it was before."""


class ChatSession:
    """One dialogue with a model: `ask` questions, with images at any turn; `clear` starts again.

    `max_seq_len` counts the tokens of the whole dialogue, images included; it is lowered to what the
    decoder's positions reach. Whatever goes wrong in `ask` leaves the dialogue as it was.

    What the model computes for images is kept in `image_store`, where the model's attention allows it: share
    one among the sessions of a model, and an image that any of them has seen costs none of them anything. A
    session that is given none has its own; without `keep_images` there is none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        max_images: int = MAX_IMAGES,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_seq_len: int = MAX_SEQ_LEN,
        sampling: Sampling | None = None,
        system: str | None = None,
        image_store: ImageKVStore | None = None,
        keep_images: bool = True,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; an answer needs at least 1")
        self.model = model
        self.processor = processor
        self.max_images = max_images
        self.max_new_tokens = max_new_tokens
        self.max_seq_len = longest_dialogue(model.config, max_seq_len)
        self.system = system
        self.turns: tuple[Turn, ...] = ()
        self.statistics: tuple[RoundStatistics, ...] = ()
        self.image_store: ImageKVStore | None = None
        if keep_images:
            self.image_store = store_if_possible(model, processor, self.max_seq_len, shared=image_store)
        self._generator = Generator(model, processor, self.image_store)
        self.sampling = sampling or Sampling()
        self._answering: Pieces[str, None, None] | None = None

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        device_map: Any = "auto",
        dtype: Any = "auto",
        base_models: dict[str, str] | None = None,
        **settings: Any,
    ) -> "ChatSession":
        """A session with a checkpoint: its folder, that of a run, or a hub name; `settings` are the constructor's.

        `base_models` says where a checkpoint of trained weights only finds the others.

        Raises `utils.commands.UsageError` where there is no checkpoint, and `utils.model.CheckpointError` where it is
        not whole.
        """
        from utils.model import load_checkpoint  # a session whose model is handed in needs none of it

        model, processor = load_checkpoint(
            checkpoint_folder(checkpoint, "checkpoint"),
            device_map=device_map,
            dtype=dtype,
            base_models=base_models,
        )
        return cls(model, processor, **settings)

    def another(self) -> "ChatSession":
        """An empty session with the same model and settings; what is kept of images serves both."""
        return ChatSession(
            self.model,
            self.processor,
            max_images=self.max_images,
            max_new_tokens=self.max_new_tokens,
            max_seq_len=self.max_seq_len,
            sampling=self.sampling,
            system=self.system,
            image_store=self.image_store,
            keep_images=self.image_store is not None,
        )

    @property
    def images(self) -> tuple[Image, ...]:
        """All images of the dialogue so far, in the order in which the model numbers them."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def conversation(self) -> Conversation | None:
        """The dialogue so far; None before the first answer."""
        return Conversation(self.turns, "chat", self.system) if self.turns else None

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen. Setting it starts the random numbers from the seed again."""
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._chooser = self._generator.chooser(sampling)

    def load(self, turns: Sequence[Turn], system: str | None = None) -> None:
        """Go on from a dialogue that was held before, here or elsewhere: its turns, all answered.

        What was computed for a dialogue that starts alike is used again.

        Raises `ChatError` for too many images, `ImageError` for one that cannot be read and
        `ConversationError` for turns that make no dialogue; the session is then as it was before.
        """
        images = self._opened([image for turn in turns for image in turn.images], before=0)
        if turns and Conversation(tuple(turns), "dialogue", system).turns[-1].answer is None:
            raise ConversationError("dialogue: the last turn has no answer; ask its question instead")
        self.stop()
        opened = iter(images)
        self.turns = tuple(replace(turn, images=tuple(next(opened) for _ in turn.images)) for turn in turns)
        self.system, self.statistics = system, ()

    def undo(self) -> Turn:
        """Take back the last round and return it; to retry, ask its question with its images again.

        Raises `ChatError` where there is none.
        """
        self.stop()
        if not self.turns:
            raise ChatError("there is no round to take back")
        undone = self.turns[-1]
        self.turns, self.statistics = self.turns[:-1], self.statistics[:-1]
        return undone

    def clear(self) -> None:
        """Start again: forget turns and images. The store keeps what was computed for images."""
        self.stop()
        self.turns, self.statistics = (), ()
        self._generator.clear()

    def stop(self) -> None:
        """End an answer that is still being given; what was said so far stands in the dialogue."""
        if self._answering is not None:
            self._answering.close()

    def ask(self, question: str, images: ImageSource | Sequence[ImageSource] = ()) -> Iterator[str]:
        """Ask, and get the answer's text in pieces as it is generated; the pieces joined are the answer.

        Images are opened and everything is checked before this returns; the computation happens while the
        pieces are taken. The turn joins the dialogue when they are at an end, or when the iterator is closed
        with something said.

        Raises `ChatError` for too many images or a dialogue that has grown too long, `ImageError` for an
        image that cannot be read and `ConversationError` for a question that cannot be asked.
        """
        self.stop()
        turn, request = self.request(question, images)
        self._answering = self._answer(turn, request)
        return self._answering

    def request(
        self, question: str, images: ImageSource | Sequence[ImageSource] = ()
    ) -> tuple[Turn, Request]:
        """The next turn, and what an engine answers it by. Raises what `ask` raises."""
        turn = Turn(question, None, self.open_images(images))
        conversation = Conversation((*self.turns, turn), "chat", self.system)
        encoded = self.processor.encode(conversation, load_images=False)
        room = self.max_seq_len - len(encoded.input_ids)
        if room < 1:
            raise ChatError(
                f"the dialogue with this question has {len(encoded.input_ids)} tokens and leaves no room for"
                f" an answer within {self.max_seq_len}; clear it, or ask with less text or fewer images"
            )
        views = self.processor.views(list(map(open_image, conversation.images)))
        prompt = Prompt(encoded.input_ids, encoded.mm_token_type_ids == 1, tuple(views))
        return turn, Request(prompt, min(self.max_new_tokens, room), self._chooser)

    def open_images(self, images: ImageSource | Sequence[ImageSource]) -> tuple[LoadedImage, ...]:
        """Read images for the next turn now: a file that changes later does not change the dialogue.

        Raises `ChatError` where there would be too many, `ImageError` for one that cannot be read.
        """
        if isinstance(images, ImageSource):
            images = [images]
        return self._opened(images, before=len(self.images))

    def _opened(self, images: Sequence[ImageSource], before: int) -> tuple[LoadedImage, ...]:
        count = before + len(images)
        if count > self.max_images:
            raise ChatError(
                f"{len(images)} more would make {count} images, of {self.max_images} allowed in a dialogue;"
                " ask with fewer, or clear it"
            )
        return tuple(open_image(image) for image in images)

    def _answer(self, turn: Turn, request: Request) -> Pieces[str, None, None]:
        answer: Answer | None = None
        failed = False
        try:
            (answer,) = self._generator.start([request])
            while True:
                if answer.piece:
                    yield answer.piece
                if answer.end is not None:
                    break
                self._generator.step()
        except Exception:
            failed = True
            raise
        finally:
            self._answering = None
            if answer is not None:
                self._generator.stop(answer)
                if not failed and (answer.end != "interrupted" or answer.text):
                    self._record(turn, answer)

    def _record(self, turn: Turn, answer: Answer) -> None:
        text = recordable(answer.text, self.processor.tokenizer)
        self.turns = (*self.turns, replace(turn, answer=text))
        self.statistics = (*self.statistics, answer.statistics)


@dataclass(frozen=True)
class Cost:
    """What an answer cost, in one line for people, and where the dialogue stands."""

    statistics: RoundStatistics
    images: int  # of the dialogue so far
    most_tokens: int  # that it may grow to

    @property
    def tokens_per_second(self) -> float:
        """After the first token, which waits for the prompt."""
        seconds = self.statistics.seconds - self.statistics.seconds_to_first_token
        return (self.statistics.generated_tokens - 1) / seconds if seconds > 0 else 0.0

    def __str__(self) -> str:
        cost = self.statistics
        tokens = cost.prompt_tokens + cost.generated_tokens
        parts = [
            f"{tokens:,} of {self.most_tokens:,} tokens ({cost.computed_tokens:,} computed)",
            f"{self.images} image{'' if self.images == 1 else 's'} ({cost.encoded_images} new)",
            f"first token {cost.seconds_to_first_token:.2f} s",
        ]
        if cost.generated_tokens > 1:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        if cost.end == "length":
            parts.append("cut at the length limit")
        return " · ".join(parts)
