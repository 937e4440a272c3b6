from types import SimpleNamespace

import pytest

from training.checkpointing.writer import CheckpointWriter, SavingError


@pytest.fixture
def writer():
    return CheckpointWriter(SimpleNamespace(args=SimpleNamespace(max_failed_saves=2)), run=None)


def save(writer, succeeds):
    with writer.tolerating_failed_saves():
        if not succeeds:
            raise SavingError("checkpoint-5 could not be written (No space left on device)")


def test_training_stops_at_one_failure_too_many_in_a_row(writer):
    save(writer, False)
    save(writer, False)
    with pytest.raises(SavingError, match="No space left"):
        save(writer, False)


def test_a_save_that_succeeds_forgives_those_before(writer):
    for _ in range(3):
        save(writer, False)
        save(writer, False)
        save(writer, True)


def test_other_errors_are_not_tolerated(writer):
    with pytest.raises(ZeroDivisionError), writer.tolerating_failed_saves():
        raise ZeroDivisionError
