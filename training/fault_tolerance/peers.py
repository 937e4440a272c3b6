"""Notices at once when another process of the run is gone, which collective operations may take half an hour for.

Every process keeps a connection to the first one. When a process dies, its system closes its end, and the others
read of it; a machine that loses its power is missed by TCP's keep-alive within half a minute. Nothing is sent
while all are well.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

from training.exit_codes import (
    FINISHED,
    INTERRUPTED,
    MISTAKE,
    RANK_LOST,
    STALLED,
    STOPPED,
    end_now,
    last_checkpoint,
)
from utils.distributed import barrier, decided_by_main, get_logger, rank, world_size

logger = get_logger(__name__)

_LOOK_EVERY = 1.0  # seconds, for connections that are new
_PATIENCE = 30.0  # seconds that the first process has to take up a connection
_DOORS = 4  # threads that take up connections: a stranger who says nothing keeps one of them busy
_GRACE = {MISTAKE: 5.0, INTERRUPTED: 5.0, STALLED: 20.0}
"""Seconds in which the others come to the same end by themselves, and say what they have to say."""


@dataclass(frozen=True)
class Departure:
    """A process that has left: on its own, with an exit code and a reason, or (code None) without a word."""

    rank: int
    host: str
    pid: int
    code: int | None = None
    reason: str = ""


def end_after(departure: Departure, output_dir: str | Path) -> None:
    """End this process too, unless the other one had come to the end of the run; from any thread."""
    if departure.code in (FINISHED, STOPPED):
        return
    if departure.code in _GRACE:
        time.sleep(_GRACE[departure.code])
        end_now(departure.code)
    speaks = rank() == (1 if departure.rank == 0 else 0)
    end_now(RANK_LOST, f"{described(departure)}; {last_checkpoint(output_dir)}" if speaks else "")


def described(departure: Departure) -> str:
    """One line on who has left, and why."""
    who = f"rank {departure.rank} ({departure.host}{f', pid {departure.pid}' if departure.pid else ''})"
    if departure.code is None:
        return f"{who} is gone: it was killed, or its machine is down"
    return f"{who} failed: {departure.reason}"


class PeerWatch:
    """Connects the processes of a run and calls `on_departure` in each where one left that should not have."""

    def __init__(self, on_departure: Callable[[Departure], None]) -> None:
        """All processes make one. `on_departure` runs in a thread of its own."""
        self.on_departure = on_departure
        self._me = Departure(rank(), socket.gethostname(), os.getpid())
        self._left = threading.Event()
        self._peers: dict[Connection, Departure] = {}  # who is gone where a connection ends
        self._lock = threading.Lock()
        self._meet()
        # Workers of data loaders are forked: with these connections open they would hide that we are gone.
        os.register_at_fork(after_in_child=self._close)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def leave(self, code: int, reason: str = "") -> None:
        """Say goodbye: what happens to this process from now on concerns nobody, unless `code` does."""
        if not self._left.is_set():
            self._left.set()
            self._tell(replace(self._me, code=code, reason=reason))

    def _close(self) -> None:
        for connection in self._peers:
            connection.close()

    def _meet(self) -> None:
        if world_size() == 1:
            return
        listeners: list[Listener] = []

        def invite() -> tuple[int, bytes]:
            token = secrets.token_bytes(16)
            listeners.append(Listener(("", 0), backlog=world_size(), authkey=token))
            return listeners[0].address[1], token

        port, token = decided_by_main(invite)
        if listeners:
            for _ in range(_DOORS):
                threading.Thread(
                    target=self._accept, args=listeners, name="accepts peers", daemon=True
                ).start()
        else:
            self._connect(os.environ.get("MASTER_ADDR", "127.0.0.1"), port, token)
        barrier()  # nobody leaves before the first process knows all that it has to tell of it

    def _connect(self, host: str, port: int, token: bytes) -> None:
        try:
            connection = Client((host, port), authkey=token)
            connection.send(self._me)
            if not connection.poll(_PATIENCE):
                raise TimeoutError("no answer")
            connection.recv()
        except (OSError, EOFError) as error:
            logger.warning(
                "no connection to %s:%d (%s): a lost process will be noticed late", host, port, error
            )
            return
        self._add(connection, Departure(0, host, 0))

    def _accept(self, listener: Listener) -> None:
        """One of the first process's threads that take up connections."""
        while True:
            with suppress(OSError, EOFError, AuthenticationError):  # whoever it is, it is none of us
                connection = listener.accept()
                self._add(connection, connection.recv())
                connection.send(self._me)  # the other one waits for it

    def _add(self, connection: Connection, peer: Departure) -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
                if hasattr(socket, name):  # not every system has all of them
                    line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._peers[connection] = peer

    def _listen(self) -> None:
        """The first process hears of the others, and tells them; these hear of it all from the first."""
        while True:
            if not self._peers:
                time.sleep(_LOOK_EVERY)
            ready: list[Any] = wait(list(self._peers), _LOOK_EVERY)
            for connection in ready:
                peer = self._peers[connection]
                try:
                    departure = connection.recv()
                except (OSError, EOFError):
                    departure = peer
                if departure.rank == peer.rank:
                    del self._peers[connection]
                if rank() == 0:
                    self._tell(departure)
                if not self._left.is_set():
                    self.on_departure(departure)

    def _tell(self, departure: Departure) -> None:
        with self._lock:
            for connection in list(self._peers):
                with suppress(OSError):  # gone: the reading side hears of it
                    connection.send(departure)
