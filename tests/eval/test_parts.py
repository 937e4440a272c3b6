"""Interrupted evaluations go on, and several processes share them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval import batch_generation
from eval.dialogues import EvalDialogue, EvalTurn
from eval.generation import Parts, key_of

DIALOGUES = [EvalDialogue(f"dialogue {number}", (EvalTurn("?"),) * (1 + number % 3)) for number in range(7)]


class Runner:
    """Answers with the dialogue's name; breaks after `parts` parts."""

    def __init__(self, parts: int = 100) -> None:
        self.left, self.asked = parts, []

    def __call__(self, dialogues):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += [dialogue.name for dialogue in dialogues]
        return [[dialogue.name] * len(dialogue.turns) for dialogue in dialogues]


EXPECTED = [[dialogue.name] * len(dialogue.turns) for dialogue in DIALOGUES]


def test_goes_on_where_it_was(tmp_path):
    parts = Parts(tmp_path / "parts", "key", 2)
    first, second, known = Runner(parts=2), Runner(), []
    with pytest.raises(KeyboardInterrupt):
        parts.answer(DIALOGUES, first)
    assert parts.answer(DIALOGUES, second, known.append) == EXPECTED
    assert first.asked + second.asked == [dialogue.name for dialogue in DIALOGUES]
    assert known == [3, 4]  # questions of dialogues 0 and 1, of 2 and 3
    parts.clear()
    assert not (tmp_path / "parts").exists()


def test_answers_of_other_settings_are_not_used(tmp_path):
    Parts(tmp_path, "earlier", 2).answer(DIALOGUES, Runner())
    runner = Runner()
    assert Parts(tmp_path, "now", 2).answer(DIALOGUES, runner) == EXPECTED
    assert len(runner.asked) == 7


def test_key_follows_checkpoint_questions_and_settings(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    key = key_of(tmp_path, DIALOGUES, "settings")
    assert key == key_of(tmp_path, DIALOGUES, "settings")
    assert key != key_of(tmp_path, DIALOGUES[1:], "settings")
    assert key != key_of(tmp_path, DIALOGUES, "others")
    (tmp_path / "config.json").write_text('{"x": 1}')
    assert key != key_of(tmp_path, DIALOGUES, "settings")


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(checkpoint, mixed_set, tmp_path, monkeypatch):
    """With a dialogue that cannot be asked, which must not end the process that writes the results."""
    bad = {"bad": [["What is it?", "nowhere.png"]]}
    mixed_set.write_text(json.dumps({**bad, **json.loads(mixed_set.read_text())}))
    flags = ["--checkpoint_path", checkpoint, "--eval_data", mixed_set, "--device_map", "cpu"]
    flags = [*map(str, flags), "--max_new_tokens", "4", "--batch_size", "1", "--output_filename"]
    monkeypatch.setattr(batch_generation, "BATCHES_PER_PART", 1)
    assert batch_generation.main([*flags, str(tmp_path / "one")]) == batch_generation.LEFT_OUT == 3
    patched = "import eval.batch_generation as run; run.BATCHES_PER_PART = 1; raise SystemExit(run.main())"
    script = tmp_path / "run.py"
    script.write_text(patched)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, str(script), *flags, str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr  # torchrun's own
    assert re.search(r"exitcode +: 3 ", done.stderr), done.stderr
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["answers"] == two["answers"] and one["overall"] == two["overall"]
