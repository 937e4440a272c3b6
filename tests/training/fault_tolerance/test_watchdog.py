"""The watchdog."""

import re
import signal
import threading
import time

import pytest

from training.exit_codes import MISTAKE, RANK_LOST, STALLED
from training.fault_tolerance.watchdog import STALLED_AT, Watchdog, last_stall, record_stall


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


def test_what_moves_after_a_stall_waits_for_the_end():
    said = threading.Event()
    watch = Watchdog(0.2, lambda where: said.set())
    watch.start()
    assert said.wait(30)
    late = threading.Thread(target=watch.mark, args=["in step 4"], daemon=True)
    late.start()
    late.join(1)
    assert late.is_alive()
    watch.stop()
    late.join(60)
    assert not late.is_alive()


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


def test_the_step_of_a_stall_is_kept(tmp_path):
    assert last_stall(tmp_path) is None
    record_stall(tmp_path, 7)
    for _ in range(300):
        if last_stall(tmp_path) is not None:
            break
        time.sleep(0.1)
    assert last_stall(tmp_path) == 7
    record_stall(tmp_path / "gone", 7)  # a disk that does not answer is no obstacle
    (tmp_path / STALLED_AT).write_text("{")
    assert last_stall(tmp_path) is None


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
        [first] = forked.forks.ask({"wait": forked.pids[:1], "timeout": 60})["codes"]
        assert first == expected
        forked.signal(signal.SIGKILL, [1])
        forked.forks.ask({"wait": forked.pids[1:], "timeout": 60})
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
