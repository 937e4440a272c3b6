"""What a process does when another process of its run has left."""

import time
from pathlib import Path

from training.fault_tolerance.exit_codes import (
    FINISHED,
    INTERRUPTED,
    MISTAKE,
    RANK_LOST,
    STALLED,
    STOPPED,
    end_now,
    last_checkpoint,
)
from training.fault_tolerance.peers import Departure
from utils.distributed import rank

_GRACE = {MISTAKE: 5.0, INTERRUPTED: 5.0, STALLED: 20.0}
"""Seconds in which the others come to the same end by themselves, and say what they have to say."""


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
