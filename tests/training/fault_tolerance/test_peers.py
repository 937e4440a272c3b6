"""Every process hears at once of another that left, and how it did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.fault_tolerance.peers import Departure, described

ROOT = Path(__file__).resolve().parents[3]
CASES = [
    f"{rank} {how}" for rank in (0, 1, 2) for how in ("killed", "killed with a child", "failed", "finished")
]


@pytest.mark.slow
def test_all_hear_of_one_that_left(tmp_path):
    subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("peers_of_three.py"),
            tmp_path / "seen.jsonl",
            *CASES,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=500,
    )
    lines = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(CASES)  # the two that stayed
    left = set()
    for line in lines:
        [seen] = line["seen"]
        code = {"failed": 1, "finished": 0}.get(line["case"])
        assert seen["code"] == code
        assert seen["reason"] == ("RuntimeError: out of memory" if code == 1 else "")
        left.add(f"{seen['rank']} {line['case']}")
    assert left == set(CASES)


def test_a_departure_in_words():
    assert described(Departure(3, "node2", 71)) == (
        "rank 3 (node2, pid 71) is gone: it was killed, or its machine is down"
    )
    assert described(Departure(3, "node2", 71, 1, "RuntimeError: out of memory")) == (
        "rank 3 (node2, pid 71) failed: RuntimeError: out of memory"
    )
