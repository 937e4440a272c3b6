"""What batches bring of bad records, whatever the disk says to their list."""

import json
from types import SimpleNamespace

import torch

from training.fault_tolerance.bad_batches import BadBatches
from utils.data import Batch
from utils.data.bad_records import BadRecord, BadRecords, RecordPlace


def batch(index: int) -> Batch:
    """A batch from which one bad record was left out."""
    place = RecordPlace("llava", "llava/detail_23k.json", index)
    return Batch({}, bad=(BadRecord(place, "the answer of turn 1 is empty"),))


def test_a_disk_that_takes_no_list_is_named_once_and_stops_nothing(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.write_text("")  # a file where the folder should be refuses whatever goes into it
    path = folder / "bad_samples.jsonl"
    records = BadRecords(max_fraction=1, path=path)
    records.total = 10
    batches = BadBatches()
    batches.prepare(SimpleNamespace(bad=records))
    for index in range(2):
        batches.before_batch(batch(index))
        batches.exchange(torch.device("cpu"))
    [warning] = [line for line in caplog.records if line.levelname == "WARNING"]
    assert str(path) in warning.getMessage() and "File exists" in warning.getMessage()

    folder.unlink()  # the disk is freed
    batches.exchange(torch.device("cpu"))
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1]
