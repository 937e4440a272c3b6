"""Notices at once when another process of the run is gone, which collective operations may take half an hour for.

Every process keeps a connection to the first one. When a process dies, its system closes its end, and the others
read of it; a machine that loses its power is missed by TCP's keep-alive within half a minute. Nothing is sent
while all are well.
"""

import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

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
from utils.distributed import decided_by_main, get_logger, rank, world_size

logger = get_logger(__name__)

_CONNECT_WITHIN = 30.0  # seconds
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
        self._lines: list[_Line] = []
        self._lock = threading.Lock()
        listen = self._meet()
        # Workers of data loaders are forked: with these connections open they would hide that we are gone.
        os.register_at_fork(after_in_child=self._close)
        threading.Thread(target=listen, name="peers", daemon=True).start()

    def leave(self, code: int, reason: str = "") -> None:
        """Say goodbye: what happens to this process from now on concerns nobody, unless `code` does."""
        if self._left.is_set():
            return
        self._left.set()
        self._tell({"left": asdict(self._me) | {"code": code, "reason": reason}}, self._lines)

    def _close(self) -> None:
        for line in self._lines:
            line.connection.close()

    def _meet(self) -> Callable[[], None]:
        if world_size() == 1:
            return lambda: None
        servers: list[socket.socket] = []

        def invite() -> tuple[int, str]:
            servers.append(socket.create_server(("", 0), backlog=world_size()))
            return servers[0].getsockname()[1], secrets.token_hex(8)

        port, token = decided_by_main(invite)
        if servers:
            return lambda: self._listen_to_all(servers[0], token)
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        try:
            connection = socket.create_connection((host, port), timeout=_CONNECT_WITHIN)
        except OSError as error:
            logger.warning(
                "no connection to %s:%d (%s): a lost process will be noticed late", host, port, error
            )
            return lambda: None
        connection.settimeout(None)
        line = _Line(connection, None)
        self._lines.append(line)
        self._tell({"hello": asdict(self._me), "token": token}, [line])
        return lambda: self._listen_to_first(line)

    def _listen_to_all(self, server: socket.socket, token: str) -> None:
        """The first process's thread."""
        selector = selectors.DefaultSelector()
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    line = _Line(server.accept()[0], None)
                    selector.register(line.connection, selectors.EVENT_READ, line)
                    continue
                line, alive = key.data, True
                for message in line.receive():
                    if message is None:
                        alive = False
                    elif line.peer is None and message.get("token") != token:
                        alive = False
                        break
                    elif "hello" in message:
                        line.peer = Departure(**message["hello"])
                        with self._lock:
                            self._lines.append(line)
                    elif "left" in message:
                        self._departed(Departure(**message["left"]), line)
                if not alive:
                    selector.unregister(line.connection)
                    line.connection.close()
                    if line in self._lines:
                        self._departed(line.peer, line)

    def _listen_to_first(self, line: "_Line") -> None:
        """Any other process's thread."""
        while not self._left.is_set():
            for message in line.receive():
                if message is None:
                    first = Departure(0, os.environ.get("MASTER_ADDR", "its host"), 0)
                    self._departed(first, line)
                    return
                departure = Departure(**message["left"])
                self._departed(departure, line if departure.rank == 0 else None)
                if departure.rank == 0:
                    return

    def _departed(self, departure: Departure, line: "_Line | None") -> None:
        with self._lock:
            if line is not None:
                self._lines.remove(line)
            others = list(self._lines)
        if rank() == 0:
            self._tell({"left": asdict(departure)}, others)
        if not self._left.is_set():
            self.on_departure(departure)

    def _tell(self, message: dict, lines: "list[_Line]") -> None:
        with self._lock:
            for line in lines:
                line.send(message)


class _Line:
    """One connection: JSON objects, one a line."""

    def __init__(self, connection: socket.socket, peer: Departure | None) -> None:
        self.connection, self.peer = connection, peer
        self._read = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):  # not every system has all of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # gone: the reading side hears of it

    def receive(self) -> Iterator[dict | None]:
        """What has come, waiting for it; None for the end."""
        try:
            piece = self.connection.recv(4096)
        except OSError:
            piece = b""
        if not piece:
            yield None
            return
        *lines, self._read = (self._read + piece).split(b"\n")
        try:
            yield from map(json.loads, lines)
        except ValueError:  # whoever it is, it is none of us
            yield None
