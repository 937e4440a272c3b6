import os
import signal
import time
from contextlib import contextmanager

import pytest

from training.fault_tolerance.output_lock import OutputInUseError, OutputLock, reserved


@contextmanager
def another_job(folder):
    """A process that holds the folder; it is killed at the end."""
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        held = OutputLock(folder)
        os.write(says, b"locked")
        time.sleep(60)
        held.release()
        os._exit(0)
    try:
        assert os.read(said, 6) == b"locked"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_second_job_refuses_and_names_the_first(tmp_path):
    with another_job(tmp_path) as child, pytest.raises(OutputInUseError) as refused, reserved(tmp_path):
        pass
    assert f"is being written by process {child} on " in str(refused.value)
    assert "give another --output_dir, or end that job" in str(refused.value)


def test_a_killed_job_leaves_no_lock(tmp_path):
    with another_job(tmp_path):
        pass
    with reserved(tmp_path):
        pass


def test_one_job_after_the_other(tmp_path):
    for _ in range(2):
        with reserved(tmp_path / "run"):
            assert (tmp_path / "run").is_dir()


def test_a_lock_file_of_another_kind_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_text("not JSON")
    OutputLock(tmp_path).release()
