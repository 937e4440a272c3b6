"""One thread that runs the model, for several dialogues at once: each gets one piece of its answer in turn.

Every answer is computed by itself, so it is the same whatever else is being answered. Only this thread touches
the sessions.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from chat.sampling import Sampling
from chat.serving.dialogue import Dialogue, turns_known_as
from chat.serving.errors import ApiError, invalid
from chat.serving.stop_strings import StopStrings
from chat.session import ChatError, ChatSession, RoundStatistics
from utils.conversation import ConversationError
from utils.distributed import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question that is ready to be computed, and how."""

    dialogue: Dialogue
    sampling: Sampling
    max_new_tokens: int
    stops: tuple[str, ...] = ()


Event = str | RoundStatistics | ApiError
"""A piece of the answer; or its end: what it cost, or what went wrong."""


class Job:
    """A question on its way. `tell` is called from the engine's thread with each event."""

    def __init__(self, asked: Asked, tell: Callable[[Event], None]) -> None:
        self.asked = asked
        self.tell = tell
        self.cancelled = threading.Event()


@dataclass
class _Slot:
    """A session, and the job that it is answering."""

    session: ChatSession
    used: int = 0  # the time of its last job, in jobs
    job: Job | None = None
    pieces: Iterator[str] | None = None
    stops: StopStrings | None = None


class Engine:
    """Answers jobs with `sessions`, as many at once as there are of them; the others wait in line.

    A session keeps what it has computed, so a job goes to the free session that has held most of its dialogue.
    """

    def __init__(self, sessions: list[ChatSession]) -> None:
        self._slots = [_Slot(session) for session in sessions]
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._jobs = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Answers that are being computed."""
        return sum(slot.job is not None for slot in self._slots)

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
                while not self._waiting and not self.busy:
                    if self._closing:
                        return
                    self._changed.wait()
            while self._waiting and self.busy < len(self._slots):
                job = self._waiting.popleft()
                if not job.cancelled.is_set():
                    self._start(job)
            for slot in self._slots:
                if slot.job is not None:
                    self._advance(slot, slot.job)

    def _start(self, job: Job) -> None:
        """Ask a free session, the one that remembers most of this dialogue or has rested longest."""
        asked = job.asked
        free = [slot for slot in self._slots if slot.job is None]
        slot = max(free, key=lambda slot: (_held_already(slot.session, asked.dialogue), -slot.used))
        self._jobs += 1
        slot.used = self._jobs
        try:
            slot.session.load(asked.dialogue.turns, asked.dialogue.system)
            slot.session.sampling = asked.sampling
            slot.session.max_new_tokens = asked.max_new_tokens
            slot.pieces = slot.session.ask(asked.dialogue.question, asked.dialogue.images)
        except ChatError as error:
            job.tell(invalid(str(error), "messages", "context_length_exceeded"))
        except ConversationError as error:
            job.tell(invalid(str(error).removeprefix("chat: "), "messages"))
        except Exception as error:  # whatever it is, the other answers go on
            self._fail(slot, job, error)
        else:
            slot.job, slot.stops = job, StopStrings(asked.stops)

    def _advance(self, slot: _Slot, job: Job) -> None:
        """Compute one more piece of an answer, unless it is at an end."""
        piece = None
        try:
            if job.cancelled.is_set() or slot.stops.found:
                slot.session.stop()
            else:
                piece = next(slot.pieces, None)
        except Exception as error:  # as above
            self._fail(slot, job, error)
            return
        text = slot.stops.finish() if piece is None else slot.stops.push(piece)
        if text:
            job.tell(text)
        if piece is None:
            slot.job = slot.pieces = slot.stops = None
            if not job.cancelled.is_set():
                job.tell(slot.session.statistics[-1])

    def _fail(self, slot: _Slot, job: Job, error: Exception) -> None:
        logger.error("an answer failed", exc_info=error)
        slot.job = slot.pieces = slot.stops = None
        slot.session.clear()
        job.tell(ApiError(500, "the answer could not be computed; the server's log says why", "server_error"))


def _held_already(session: ChatSession, dialogue: Dialogue) -> int:
    """Turns at the beginning that a session's dialogue shares with another."""
    if session.system != dialogue.system:
        return 0
    pairs = zip(turns_known_as(session.turns), turns_known_as(dialogue.turns), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
