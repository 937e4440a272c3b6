"""Bad records that turn up while batches are read: made known to all processes.

They travel inside the batches, so what is known after a step depends on the batches up to it alone: not on how
far a loader's workers have read ahead, nor on how the batches are spread over processes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from training.extension import Extension, Prepared, Verdict
from utils.atomic import BestEffort
from utils.data import Batch
from utils.data.bad_records import BadRecord, BadRecords
from utils.distributed import get_logger, is_main_process, world_size

logger = get_logger(__name__)

_SHOWN = 10  # bad records that get a line of their own; further ones are only counted, and listed in the file


class BadBatches(Extension):
    """Collects what the batches of this process bring, and brings all processes to the same list."""

    def __init__(self) -> None:
        self.records = BadRecords()
        self._new: list[Sequence[BadRecord]] = []  # of each batch since the last exchange
        self._list = BestEffort()

    def prepare(self, parts: Prepared) -> None:
        self.records = parts.bad

    def before_batch(self, batch: Batch, evaluating: bool = False) -> Verdict:
        self._new.append(batch.bad)
        if self.records.strict:  # the first bad record ends the run
            self.exchange(self.context.args.device)
        return Verdict.CONTINUE

    def add_to_log(self, logs: dict[str, float]) -> None:
        self.exchange(self.context.args.device)

    def add_to_evaluation(self, metrics: dict[str, float]) -> None:
        self.exchange(self.context.args.device)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A resumed run finds those listed that it will not meet again."""
        self.exchange(self.context.args.device)
        yield

    def exchange(self, device: torch.device) -> None:
        """Add everybody's to the list, and write it where it has changed; all processes call.

        Raises `BadDataError` in all of them alike, where `BadRecords` does.
        """
        found = self._everybodys(device)
        if not found:
            if self._list.is_due:
                self._write()
            return
        known = len(self.records)
        try:
            for bad in found:
                if bad.place not in self.records and len(self.records) < _SHOWN:
                    logger.info("left out: %s: %s", bad.place, bad.reason)
                self.records.add(bad)
        finally:
            if is_main_process():
                self._write()
        if len(self.records) > max(known, _SHOWN):
            logger.info("left out so far: %s", self.records.summary())
        self.records.check()

    def _everybodys(self, device: torch.device) -> list[BadRecord]:
        """What all processes have found since the last time, in the order of the global batches."""
        new, self._new = self._new, []
        if world_size() > 1:
            count = torch.tensor(sum(map(len, new)), device=device)
            dist.all_reduce(count)
            if count == 0:
                return []
            gathered: list[list[Sequence[BadRecord]]] = [[] for _ in range(world_size())]
            dist.all_gather_object(gathered, new)
            # Micro-steps, and in each the processes.
            new = [batch for micro_step in zip(*gathered, strict=True) for batch in micro_step]
        return [bad for batch in new for bad in batch]

    def _write(self) -> None:
        assert self.records.path is not None
        with self._list.writing(self.records.path):
            self.records.write()
