"""One thread that runs the model, for several dialogues at once: at each step all of them get one token.

A request joins those that are being answered as soon as there is a slot, and leaves with its last token. Every
answer is the same whatever else is being answered. Only this thread touches the generator.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chat.generation import Answer, Generator, RoundStatistics, Sampling
from chat.serving.errors import ApiError, invalid
from chat.serving.schema import Dialogue
from chat.session import ChatError, ChatSession
from utils.conversation import ConversationError
from utils.distributed import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class GenerationRequest:
    """A question that is ready to be computed, and how."""

    dialogue: Dialogue
    sampling: Sampling
    max_new_tokens: int
    stops: tuple[str, ...] = ()


Event = str | RoundStatistics | ApiError
"""A piece of the answer; or its end: what it cost, or what went wrong."""


class Job:
    """A question on its way. `emit` is called from the engine's thread with each event."""

    def __init__(self, asked: GenerationRequest, emit: Callable[[Event], object]) -> None:
        self.asked = asked
        self.emit = emit
        self.cancelled = threading.Event()


class StopStrings:
    """Passes an answer on up to the first of the `stops`, which is left out, though it may come in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # could be the start of one
        self.found = False

    def push(self, piece: str) -> str:
        """The next piece of the answer; returns what is now certain to belong to it."""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and is the answer's after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    return next(
        (size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0
    )


@dataclass
class _Slot:
    """A job that is being answered."""

    job: Job
    answer: Answer
    stops: StopStrings


class Engine:
    """Answers jobs with the model of a `session`, which also says what is allowed: as many at once as there are
    `slots`; the others wait in line.

    What was read of the last dialogues, one for each slot, is kept for their next rounds.
    """

    def __init__(self, session: ChatSession, slots: int = 1) -> None:
        self._session, self._most = session, slots
        self._generator = Generator(session.model, session.processor, session.image_store, remembered=slots)
        self._slots: list[_Slot] = []
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Answers that are being computed."""
        return len(self._slots)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Put a job in line."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants this answer any more; its slot becomes free."""
        job.cancelled.set()
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """End the thread once everything in line is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._slots:
                    if self._closing:
                        return
                    self._changed.wait()
            while self._waiting and len(self._slots) < self._most:
                job = self._waiting.popleft()
                if not job.cancelled.is_set():
                    self._start(job)
            self._step()

    def _start(self, job: Job) -> None:
        """Read a question, and tell the first piece of its answer."""
        asked = job.asked
        try:
            session = self._session.another()
            session.load(asked.dialogue.turns, asked.dialogue.system)
            session.sampling = asked.sampling
            session.max_new_tokens = asked.max_new_tokens
            _, request = session.request(asked.dialogue.question, asked.dialogue.images)
            (answer,) = self._generator.start([request])
        except ChatError as error:
            job.emit(invalid(str(error), "messages", "context_length_exceeded"))
        except ConversationError as error:
            job.emit(invalid(str(error).removeprefix("chat: "), "messages"))
        except Exception as error:  # whatever it is, the other answers go on
            _fail([job], error)
        else:
            self._slots.append(_Slot(job, answer, StopStrings(asked.stops)))
            self._tell(self._slots[-1])

    def _step(self) -> None:
        """One more token for all, but for those whom nobody waits for."""
        for slot in [slot for slot in self._slots if slot.job.cancelled.is_set()]:
            self._generator.stop(slot.answer)
            self._slots.remove(slot)
        try:
            advanced = self._generator.step()
        except Exception as error:  # nobody knows whose it is
            _fail([slot.job for slot in self._slots], error)
            self._slots.clear()
            self._generator.clear()
            return
        for slot in [slot for slot in self._slots if slot.answer in advanced]:
            self._tell(slot)

    def _tell(self, slot: _Slot) -> None:
        """What came with the last step; where an answer is at its end, its slot becomes free."""
        job, answer, stops = slot.job, slot.answer, slot.stops
        text = stops.push(answer.piece)
        if stops.found:
            self._generator.stop(answer)
        if answer.end is not None:
            text += stops.finish()
        if text:
            job.emit(text)
        if answer.end is not None:
            self._slots.remove(slot)
            job.emit(answer.statistics)


def _fail(jobs: list[Job], error: Exception) -> None:
    logger.error("an answer failed", exc_info=error)
    for job in jobs:
        job.emit(ApiError(500, "the answer could not be computed; the server's log says why", "server_error"))
