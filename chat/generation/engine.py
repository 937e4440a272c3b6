"""The one loop that generates: answers that are given together, a token of each at every step.

A session generates a batch of one, an evaluation a batch of many, the server a batch of its requests, which join and
leave between steps. Each answer is what it would be alone: rows see only themselves, and choose by themselves.
`PrefixCache` keeps what was read of the last dialogues, so that the next round reads only what is new in it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from chat.generation.decoding import Sampling, TextStream, TokenChooser
from chat.generation.reading import ImageKVStore, Prompt, Reading, WholeDialogues, Work
from chat.limits import StoreLimits

End = Literal["eos", "length", "interrupted"]


@dataclass(frozen=True, eq=False)
class Request:
    """A dialogue to answer, with `max_new_tokens` at most; its tokens are chosen by a `chooser` of its own."""

    prompt: Prompt
    max_new_tokens: int
    chooser: TokenChooser


@dataclass(frozen=True)
class RoundStatistics:
    """What a round cost.

    `computed_tokens` counts the tokens, of prompt and answer, that went through the decoder in this round, and
    `computed_image_tokens` those of images among them; the rest of the `prompt_tokens` were kept.
    `encoded_images` counts the images that went through the encoder.
    """

    prompt_tokens: int
    generated_tokens: int
    computed_tokens: int
    computed_image_tokens: int
    encoded_images: int
    seconds_to_first_token: float
    seconds: float
    end: End


class Answer:
    """An answer on its way: `text` so far, of which `piece` came with the last step; `end` says why it ended."""

    def __init__(self, request: Request, stream: TextStream) -> None:
        prompt, room = request.prompt, request.max_new_tokens
        self.request = request
        self.end: End | None = None
        self.piece = ""
        self.work = Work()
        self.is_remembered = False  # what was read of its dialogue, after its end
        self._ids = np.concatenate([prompt.ids, np.zeros(room, prompt.ids.dtype)])
        self._is_image = np.concatenate([prompt.is_image, np.zeros(room, bool)])
        self._length = len(prompt.ids)
        self._stream = stream
        self._started = time.perf_counter()
        self._first = self._last = 0.0

    @property
    def text(self) -> str:
        return self._stream.text

    @property
    def dialogue(self) -> Prompt:
        """The prompt and the tokens of the answer so far."""
        return Prompt(self._ids[: self._length], self._is_image[: self._length], self.request.prompt.images)

    @property
    def statistics(self) -> RoundStatistics:
        """What it cost, once it has ended."""
        assert self.end is not None
        prompt = len(self.request.prompt.ids)
        return RoundStatistics(
            prompt_tokens=prompt,
            generated_tokens=self._length - prompt,
            computed_tokens=self.work.tokens,
            computed_image_tokens=self.work.image_tokens,
            encoded_images=self.work.encoded_images,
            seconds_to_first_token=self._first - self._started,
            seconds=self._last - self._started,
            end=self.end,
        )

    def take(self, token: int, eos_ids: frozenset[int]) -> None:
        """One more token."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        if token in eos_ids:
            self.end, self.piece = "eos", self._stream.finish()
            return
        self._ids[self._length] = token
        self._length += 1
        self.piece = self._stream.push(token)
        if self._length == len(self._ids):
            self.end = "length"
            self.piece += self._stream.finish()


class Generator:
    """Generates answers with a model: `start` reads prompts, and each `step` gives every answer one more token.

    With an `image_store` text alone goes through the decoder. What was read of the last `remembered` dialogues stays,
    so that one that goes on, or starts like another, is read from there; dialogues that are being answered count among
    them. For one thread at a time. A step that fails leaves all as it was before it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        image_store: ImageKVStore | None = None,
        remembered: int = 1,
    ) -> None:
        self._model, self._processor, self._store = model.eval(), processor, image_store
        self._eos_ids = eos_token_ids(model, processor)
        self._remembered = remembered
        self._prefixes = PrefixCache()
        self._answers: list[Answer] = []
        self._reading = self._empty()  # of the answers, row by row

    def chooser(self, sampling: Sampling) -> TokenChooser:
        """Chooses by `sampling`, from its seed on, but never the image token: there is no image for it."""
        return TokenChooser(sampling, suppressed=self._processor.placeholder_ids)

    @property
    def answering(self) -> int:
        """Answers on their way."""
        return len(self._answers)

    def answers(self, requests: Sequence[Request]) -> list[str]:
        """The whole answers to these requests, given together."""
        answers = self.start(requests)
        while self._answers:
            self.step()
        return [answer.text for answer in answers]

    @torch.inference_mode()
    def start(self, requests: Sequence[Request]) -> list[Answer]:
        """Read prompts, and choose the first token of each; those that have not ended join the others.

        What several prompts start with is read once. One that comes alone goes on from a dialogue that is remembered.
        """
        answers = [Answer(request, TextStream(self._processor.tokenizer)) for request in requests]
        prompts = [request.prompt for request in requests]
        reading = self._start_of(prompts)
        logits, work = reading.read(prompts)
        answers[0].work = work  # of all that start together
        answers[0].is_remembered = len(answers) == 1
        self._choose(answers, logits)
        self._reading = self._reading.beside(reading) if self._answers else reading
        self._answers += answers
        self._leave()
        return answers

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """One more token for each answer on its way; returns these answers."""
        answers = list(self._answers)
        if answers:
            logits, _ = self._reading.read([answer.dialogue for answer in answers])
            for answer in answers:
                answer.work.tokens += 1
            self._choose(answers, logits)
            self._leave()
        return answers

    def stop(self, answer: Answer) -> None:
        """End an answer here, if it is on its way; what was said stands."""
        if answer.end is None:
            answer.end = "interrupted"
            self._leave()

    def clear(self) -> None:
        """Forget everything: dialogues, and answers on their way."""
        self._prefixes.clear()
        self._answers, self._reading = [], self._empty()

    def _empty(self, size: int = 1) -> Reading:
        if self._store is not None:
            return self._store.reading(size)
        return WholeDialogues(self._model, self._processor, size)

    def _start_of(self, prompts: Sequence[Prompt]) -> Reading:
        """What is known of these prompts, a row for each."""
        if len(prompts) == 1:
            known = self._prefixes.take(prompts[0]) or self._start_under_way(prompts[0])
            self._prefixes.shrink(self._remembered - len(self._answers) - 1)
            return known or self._empty()
        common = _common_start(prompts)
        if not common or not self._reading.starts_are_shared:
            return self._empty(len(prompts))
        start = prompts[0].until(common)
        reading = self._prefixes.take(start) or self._empty()
        reading.read([start])
        self._prefixes.put(reading, start, common)
        self._prefixes.shrink(self._remembered)
        return reading.rows([0] * len(prompts))

    def _start_under_way(self, prompt: Prompt) -> Reading | None:
        """A copy of what a prompt has in common with the start of a dialogue that is being answered."""
        starts = [shared_start(answer.request.prompt, prompt) for answer in self._answers]
        if not max(starts, default=0):
            return None
        reading = self._reading.rows([starts.index(max(starts))])
        reading.cut(prompt.is_image[: max(starts)])
        return reading

    def _choose(self, answers: Sequence[Answer], logits: torch.Tensor) -> None:
        logits = logits.float().cpu()
        for number, answer in enumerate(answers):
            ids = torch.from_numpy(answer.dialogue.ids)[None]
            answer.take(answer.request.chooser.choose(ids, logits[number : number + 1]), self._eos_ids)

    def _leave(self) -> None:
        """Answers that have ended leave the batch; what was read of their dialogues is remembered."""
        staying = [number for number, answer in enumerate(self._answers) if answer.end is None]
        if len(staying) == len(self._answers):
            return
        for number, answer in enumerate(self._answers):
            if answer.end is not None and answer.is_remembered:
                row = self._reading if len(self._answers) == 1 else self._reading.rows([number])
                self._prefixes.put(row, answer.dialogue, len(answer.request.prompt.ids))
        self._prefixes.shrink(self._remembered - len(staying))
        self._reading = self._reading.rows(staying) if staying else self._empty()
        self._answers = [self._answers[number] for number in staying]


def _common_start(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts start with, the last of them text; at least one of each is left."""
    first = prompts[0]
    tokens = min(shared_start(first, each) for each in prompts)
    text = np.flatnonzero(~first.is_image[:tokens])
    return int(text[-1]) + 1 if len(text) else 0


def eos_token_ids(model: PreTrainedModel, processor: ProcessorMixin) -> frozenset[int]:
    """The tokens that end an answer: the generation settings name them, else the tokenizer does."""
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = processor.tokenizer.eos_token_id
    return frozenset([configured] if isinstance(configured, int) else configured)


def store_if_possible(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    tokens: int,
    limits: StoreLimits | None = None,
    shared: ImageKVStore | None = None,
) -> ImageKVStore | None:
    """A store of images' keys and values for dialogues of up to `tokens`: the `shared` one, or a new one.

    None if there cannot be one for this model, or if its code is deleted. Raises `ValueError` if the shared one is
    another model's.
    """
    from utils.plugins import found

    make = found("chat.image_kv.store.store_if_possible")
    return make and make(model, processor, tokens, limits, shared)


@dataclass(frozen=True, eq=False)
class _Entry:
    reading: Reading  # of one row
    dialogue: Prompt
    asked: int  # tokens of its last prompt; an answer follows


class PrefixCache:
    """Remembers readings of dialogues, and hands out what a new dialogue starts with as well.

    Tokens are the same where their ids are, images where their bytes are.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []  # the one used last is last

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def shrink(self, most: int) -> None:
        """Forget the dialogues that rest longest, above so many."""
        del self._entries[: max(len(self._entries) - max(most, 0), 0)]

    def take(self, dialogue: Prompt) -> Reading | None:
        """The longest start of a dialogue that has been read; None where there is none.

        At least one token is left to compute: the answer's first token comes from the last one's logits. The reading of
        a dialogue that goes on, or asks its last question again, leaves this place; of one that only starts alike a
        copy is handed out.
        """
        starts = [shared_start(entry.dialogue, dialogue) for entry in self._entries]
        tokens = max(starts, default=0)
        if not tokens:
            return None
        number = len(starts) - 1 - starts[::-1].index(tokens)
        entry = self._entries[number]
        if tokens >= entry.asked - 1:
            del self._entries[number]
            reading = entry.reading
        else:
            reading = entry.reading.rows([0])
        reading.cut(dialogue.is_image[:tokens])
        return reading

    def put(self, reading: Reading, dialogue: Prompt, asked: int) -> None:
        """Remember the `reading` of a dialogue, of which the last tokens may not be in it; a prompt of so many tokens
        was `asked`."""
        if covered := reading.covered(dialogue.is_image):
            self._entries.append(_Entry(reading, dialogue.until(covered), min(asked, covered)))


def shared_start(known: Prompt, other: Prompt) -> int:
    """How many tokens a known dialogue and another, but for its last token, start with alike; images count whole."""
    tokens = _common_length(known.ids, other.ids[:-1])
    if other.images:
        pairs = zip(known.images, other.images, strict=False)
        whole = sum(1 for _ in takewhile(lambda pair: pair[0].digest == pair[1].digest, pairs))
        places = np.flatnonzero(other.is_image)  # [n * tokens of an image]
        length = len(places) // len(other.images)
        whole = min(whole, int((places < tokens).sum()) // length)
        if whole < len(other.images):  # the first image that is another, or read in part, ends what is shared
            tokens = min(tokens, int(places[whole * length]))
    return tokens


def _common_length(left: np.ndarray, right: np.ndarray) -> int:
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size
