from types import SimpleNamespace

import pytest

from training.checkpointing.writer import SavingError
from training.trainer import VisualChatTrainer


@pytest.fixture
def trainer():
    made = VisualChatTrainer.__new__(VisualChatTrainer)  # no model: only the count of failures is asked
    made.args, made._failed_saves = SimpleNamespace(max_failed_saves=2), 0
    return made


def save(trainer, succeeds):
    with trainer._tolerated():
        if not succeeds:
            raise SavingError("checkpoint-5 could not be written (No space left on device)")


def test_training_stops_at_one_failure_too_many_in_a_row(trainer):
    save(trainer, False)
    save(trainer, False)
    with pytest.raises(SavingError, match="No space left"):
        save(trainer, False)


def test_a_save_that_succeeds_forgives_those_before(trainer):
    for _ in range(3):
        save(trainer, False)
        save(trainer, False)
        save(trainer, True)


def test_other_errors_are_not_tolerated(trainer):
    with pytest.raises(ZeroDivisionError), trainer._tolerated():
        raise ZeroDivisionError
