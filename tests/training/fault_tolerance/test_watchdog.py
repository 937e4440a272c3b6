"""The watchdog."""

import re
import signal
import threading

import pytest

from training.exit_codes import MISTAKE, RANK_LOST, STALLED
from training.fault_tolerance.watchdog import Watchdog


def test_says_where_it_stood_once():
    said, place = threading.Event(), []

    def on_stall(where: str) -> None:
        place.append(where)
        said.set()

    watch = Watchdog(0.2, on_stall)
    watch.start()
    watch.mark("in step 3, training on a text-only batch")
    assert said.wait(30)
    assert place == ["in step 3, training on a text-only batch"]


def test_what_takes_its_time_is_no_stall():
    said = threading.Event()
    watch = Watchdog(0.1, lambda where: said.set())
    watch.start()
    with watch.paused():
        assert not said.wait(1)
    watch.stop()
    off = Watchdog(0, lambda where: said.set())
    off.start()
    assert not said.wait(0.5)


@pytest.mark.slow
def test_a_second_stall_at_the_same_step_needs_a_person(forks, trainings, tmp_path):
    """The second comes at an earlier line than the first: nobody can stop a process at an exact step."""
    for line, expected, says in (
        ("step +2/", STALLED, "so a new run starts afresh"),
        ("evaluation loss", MISTAKE, "starting it again will not help"),
    ):
        forked = forks.start(
            trainings.arguments(
                tmp_path, stall_timeout=5, save_strategy="no", dataset_samples=13, num_train_epochs=50
            )
        )
        forked.await_line(line)
        forked.signal(signal.SIGSTOP, [1])
        forked.await_line(f"error: no progress for 5 s .*{says}")
        forked.ranks[0].join(60)
        assert forked.ranks[0].exitcode == expected
        forked.signal(signal.SIGKILL, [1])
        forked.wait()
    assert re.search("stalled at step [0-9]+ before", forked.printed)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run(forks, trainings, tmp_path):
    """One rank is frozen; the other waits for it in a collective operation, and says so."""
    forked = forks.start(
        trainings.arguments(
            tmp_path, zero_stage=3, stall_timeout=10, eval_strategy="no", save_steps=2, num_train_epochs=50
        )
    )
    forked.await_line("step +[0-9]+/")
    forked.signal(signal.SIGSTOP, [1])
    forked.await_line("error: no progress for 10 s")
    forked.signal(signal.SIGCONT, [1])
    waited, frozen = forked.wait(60)
    assert waited == STALLED
    assert frozen in (STALLED, RANK_LOST)  # which it notices first, awake again
    [line] = [
        line for line in forked.printed.splitlines() if line.startswith("error: ") and "rank 0 of 2" in line
    ]
    assert "with 4 images" in line or "waiting for the data of step" in line
    assert not forked.left_behind()
