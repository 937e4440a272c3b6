"""A dialogue with a model over images and rounds, in which each round costs only its new tokens."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.answers import TextStream, recordable
from chat.decoding import CachedDecoder
from chat.prefix_cache import PrefixCache
from chat.sampling import Sampling
from utils.conversation import Conversation, Image, Turn
from utils.model.checkpoint import load_checkpoint

ImageSource = str | Path | bytes | PIL.Image.Image | Image

MAX_IMAGES = 8
MAX_SEQ_LEN = 4096
MAX_NEW_TOKENS = 256


class ChatError(ValueError):
    """A question that cannot be asked; the message says what to do. The session is as it was before."""


@dataclass(frozen=True)
class RoundStatistics:
    """What a round cost.

    `computed_tokens` counts the tokens, of prompt and answer, that went through the decoder in this round;
    the rest of the `prompt_tokens` were cached. `encoded_images` counts the images that were not cached.
    """

    prompt_tokens: int
    generated_tokens: int
    computed_tokens: int
    encoded_images: int
    seconds_to_first_token: float
    seconds: float
    end: Literal["eos", "length", "interrupted"]


@dataclass(frozen=True)
class _Round:
    """A question that is ready to be computed; S tokens."""

    turn: Turn
    images: tuple[Image, ...]  # of the whole dialogue
    ids: np.ndarray  # [S]
    is_image: np.ndarray  # [S]
    max_new_tokens: int


class ChatSession:
    """One dialogue with a model: `ask` questions, with images at any turn; `clear` starts again.

    `max_seq_len` counts the tokens of the whole dialogue, images included; it is lowered to what the
    decoder's positions reach. Whatever goes wrong in `ask` leaves the dialogue as it was.
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
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; an answer needs at least 1")
        self.model = model
        self.processor = processor
        self.max_images = max_images
        self.max_new_tokens = max_new_tokens
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_seq_len = min(max_seq_len, positions or max_seq_len)
        self.system = system
        self.turns: tuple[Turn, ...] = ()
        self.statistics: tuple[RoundStatistics, ...] = ()
        self._decoder = CachedDecoder(model, processor, sampling or Sampling())
        self._prefix = PrefixCache()
        self._answering: Iterator[str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        device_map: Any = "auto",
        dtype: Any = "auto",
        base_models: dict[str, str] | None = None,
        **settings: Any,
    ) -> "ChatSession":
        """A session with the model in a checkpoint folder; `settings` are those of the constructor.

        `base_models` says where a checkpoint of trained weights only finds the others.

        Raises `utils.model.CheckpointError` where the folder is not a whole checkpoint.
        """
        model, processor = load_checkpoint(
            checkpoint, device_map=device_map, dtype=dtype, base_models=base_models
        )
        return cls(model, processor, **settings)

    @property
    def images(self) -> tuple[Image, ...]:
        """All images of the dialogue so far, in the order in which the model numbers them."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def conversation(self) -> Conversation | None:
        """The dialogue so far; None before the first answer."""
        return Conversation(self.turns, "chat", self.system) if self.turns else None

    def clear(self) -> None:
        """Start again: forget turns, images and what was computed for them."""
        self.stop()
        self.turns, self.statistics = (), ()
        self._prefix.clear()

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
        turn = Turn(question, None, self.open_images(images))
        conversation = Conversation((*self.turns, turn), "chat", self.system)
        encoded = self.processor.encode(conversation, load_images=False)
        room = self.max_seq_len - len(encoded.input_ids)
        if room < 1:
            raise ChatError(
                f"the dialogue with this question has {len(encoded.input_ids)} tokens and leaves no room for"
                f" an answer within {self.max_seq_len}; clear it, or ask with less text or fewer images"
            )
        self._answering = self._answer(
            _Round(
                turn,
                conversation.images,
                encoded.input_ids,
                encoded.mm_token_type_ids == 1,
                min(self.max_new_tokens, room),
            )
        )
        return self._answering

    def open_images(self, images: ImageSource | Sequence[ImageSource]) -> tuple[Image, ...]:
        """Read images for the next turn now: a file that changes later does not change the dialogue.

        Raises `ChatError` where there would be too many, `ImageError` for one that cannot be read.
        """
        if isinstance(images, ImageSource):
            images = [images]
        count = len(self.images) + len(images)
        if count > self.max_images:
            raise ChatError(
                f"{len(images)} more would make {count} images, of {self.max_images} allowed in a dialogue;"
                " ask with fewer, or clear it"
            )
        lazy = [image if isinstance(image, Image) else Image(image) for image in images]
        return tuple(Image(image.open(), image.name) for image in lazy)

    def _answer(self, asked: _Round) -> Iterator[str]:
        started = time.perf_counter()
        stream = TextStream(self.processor.tokenizer)
        ids = asked.ids.tolist()
        prefix = self._prefix.take(asked.ids, asked.is_image, asked.images)
        first: float | None = None
        end: Literal["eos", "length", "interrupted"] | None = None  # None: it failed
        try:
            pixels = self.processor.pixel_values(asked.images[prefix.images :])
            while end is None:
                token = self._decoder.next_token(ids, asked.is_image, prefix.cache, pixels)
                first, pixels = first or time.perf_counter(), None
                if token in self._decoder.eos_ids:
                    end = "eos"
                    break
                ids.append(token)
                if piece := stream.push(token):
                    yield piece
                if len(ids) == len(asked.ids) + asked.max_new_tokens:
                    end = "length"
            if piece := stream.finish():
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            end = "interrupted"
            raise
        finally:
            self._answering = None
            computed = prefix.cache.get_seq_length() - prefix.tokens
            self._prefix.put(prefix.cache, np.array(ids), asked.images)
            if end in ("eos", "length") or (end == "interrupted" and stream.text):
                now = time.perf_counter()
                statistics = RoundStatistics(
                    prompt_tokens=len(asked.ids),
                    generated_tokens=len(ids) - len(asked.ids),
                    computed_tokens=computed,
                    encoded_images=len(asked.images) - prefix.images,
                    seconds_to_first_token=(first or now) - started,
                    seconds=now - started,
                    end=end,
                )
                self._record(asked.turn, stream.text, statistics)

    def _record(self, turn: Turn, answer: str, statistics: RoundStatistics) -> None:
        answer = recordable(answer, self.processor.tokenizer)
        self.turns = (*self.turns, replace(turn, answer=answer))
        self.statistics = (*self.statistics, statistics)
