"""A visitor's dialogue: asked through the engine, which all visitors share."""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chat.generation.decoding import Sampling, recordable
from chat.images import LoadedImage
from chat.saved_dialogues import save_dialogue
from chat.serving.engine import Engine, Event, GenerationRequest, Job
from chat.serving.errors import ApiError, invalid
from chat.serving.images import ImageOpener
from chat.serving.schema import Dialogue
from chat.session import ChatSession, Cost
from utils.conversation import Turn

STOPPED = "stopped"


@dataclass(frozen=True)
class SharedEngine:
    """What all visitors share: the engine, and a session that says what is allowed."""

    engine: Engine
    images: ImageOpener
    session: ChatSession


@dataclass(frozen=True)
class AnswerSettings:
    """How a visitor wants to be answered."""

    sampling: Sampling
    max_new_tokens: int
    system: str | None = None


@dataclass
class PageSession:
    """One dialogue. `asked` is the turn that is being answered; `files` says where an image's file is kept."""

    shared: SharedEngine
    turns: tuple[Turn, ...] = ()
    asked: Turn | None = None
    status: str = ""
    files: dict[str, str] = field(default_factory=dict)  # by digest
    kept: Path | None = None  # the file to download, written anew after each answer
    _system: str | None = None
    _events: queue.SimpleQueue[Event | None] | None = None

    @property
    def shown(self) -> tuple[Turn, ...]:
        """All turns, the one that is being answered too."""
        return self.turns if self.asked is None else (*self.turns, self.asked)

    @property
    def image_count(self) -> int:
        return sum(len(turn.images) for turn in self.shown)

    def open_files(self, paths: Sequence[str]) -> tuple[LoadedImage, ...]:
        """The images that were uploaded. Raises `ApiError` for too many, and for one that cannot be read."""
        most = self.shared.session.max_images
        count = self.image_count + len(paths)
        if count > most:
            raise invalid(f"That would make {count} images, of {most} allowed; start a new dialogue.")
        images = []
        for path in map(Path, paths):
            images.append(self.shared.images.checked(path.read_bytes(), path.name, path.name))
            self.files[images[-1].digest] = str(path)
        return tuple(images)

    def ask(self, question: str, images: tuple[LoadedImage, ...], settings: AnswerSettings) -> Iterator[None]:
        """Answer, a step at a time; after each, `shown` has grown. A question that fails is not kept, nor is one
        that a new dialogue or another question has taken the place of.

        Raises `ApiError`.
        """
        self.stop()
        self._system = settings.system
        self.asked, said = Turn(question, "", images), ""
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._events = events
        dialogue = Dialogue(self.turns, question, images, settings.system)
        job = Job(GenerationRequest(dialogue, settings.sampling, settings.max_new_tokens), events.put)
        self.shared.engine.submit(job)
        try:
            while isinstance(event := events.get(), str):
                if self._events is not events:
                    return
                said += event
                self.asked = Turn(question, said, images)
                yield
            if self._events is not events:
                return
            if isinstance(event, ApiError):
                raise event
            self.status = (
                STOPPED
                if event is None
                else str(Cost(event, self.image_count, self.shared.session.max_seq_len))
            )
            if event is not None or said:
                answer = recordable(said, self.shared.session.processor.tokenizer)
                self.turns = (*self.turns, Turn(question, answer, images))
        finally:
            self.shared.engine.cancel(job)
            if self._events is events:
                self._events = self.asked = None

    def stop(self) -> None:
        """End the answer that is being given; what was said stands."""
        if self._events is not None:
            self._events.put(None)

    def undo(self) -> Turn | None:
        """Take back the last round."""
        if not self.turns:
            return None
        *kept, undone = self.turns
        self.turns, self.status = tuple(kept), ""
        return undone

    def clear(self) -> None:
        self.stop()
        self.turns, self.asked, self.status, self._events = (), None, "", None
        self.files.clear()
        if self.kept is not None:
            self.kept.unlink(missing_ok=True)

    def save(self, path: Path) -> None:
        """Write the dialogue, with the system text under which the last question was asked."""
        save_dialogue(path, self.turns, self._system)
