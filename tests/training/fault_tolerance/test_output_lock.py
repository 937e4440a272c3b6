import os
import signal
import time
from contextlib import contextmanager

import pytest

from training.fault_tolerance.output_lock import OutputInUseError, reserved


@contextmanager
def another_job(folder):
    """A process that holds the folder; it is killed at the end."""
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        with reserved(folder):
            os.write(says, b"locked")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(said, 6) == b"locked"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_second_job_refuses_and_names_the_first_until_that_is_killed(tmp_path):
    with another_job(tmp_path) as child, pytest.raises(OutputInUseError) as refused, reserved(tmp_path):
        pass
    assert f"is being written by process {child} on " in str(refused.value)
    assert "give another --output_dir, or end that job" in str(refused.value)
    for _ in range(2):
        with reserved(tmp_path):
            pass
