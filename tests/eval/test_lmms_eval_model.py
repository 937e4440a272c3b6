"""lmms-eval's own command over a task of ours, where lmms-eval is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from eval.dialogues import load_dialogues
from eval.generation import DialogueRunner, GenerationSettings

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed here")
ROOT = Path(__file__).parents[2]

TASK = """
dataset_path: {data}
dataset_kwargs: {{load_from_disk: True}}
task: shapes
test_split: test
output_type: generate_until
doc_to_visual: !function utils.images
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 5, temperature: 0}}
process_results: !function utils.process
metric_list:
  - {{metric: said, aggregation: !function utils.collect, higher_is_better: true}}
"""
UTILS = """
def pictures(doc):
    return [doc["picture"].convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process(doc, results):
    return {"said": (doc["question"], results[0])}


def collect(results):
    import json, os
    with open(os.environ["SAID"], "w") as file:
        json.dump(results, file)
    return len(results)
"""


@pytest.fixture
def task(tmp_path, pictures) -> Path:
    """A task of six questions about one picture each, as a folder for lmms-eval's --include_path."""
    folder = tmp_path / "tasks" / "shapes"
    folder.mkdir(parents=True)
    records = [
        {"question": f"what is it, {number}?", "picture": Image.open(path), "answer": "red"}
        for number, path in enumerate(pictures)
    ]
    features = Features({"question": Value("string"), "picture": ImageFeature(), "answer": Value("string")})
    data = DatasetDict({"test": Dataset.from_list(records, features=features)})
    data.save_to_disk(tmp_path / "data")
    (folder / "shapes.yaml").write_text(TASK.format(data=tmp_path / "data"))
    (folder / "utils.py").write_text(UTILS)
    return folder.parent


@pytest.mark.slow
def test_its_command_gets_our_answers(task, tmp_path, checkpoint, model_and_processor, pictures):
    said = tmp_path / "said.json"
    command = [sys.executable, "-m", "eval.lmms_eval_model", "--checkpoint_path", str(checkpoint)]
    command += ["--tasks", "shapes", "--include_path", str(task), "--batch_size", "4"]
    command += ["--model_args", "device_map=cpu"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "SAID": str(said), "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    file = tmp_path / "set.json"
    file.write_text(
        json.dumps({str(path): [[f"what is it, {n}?", f"'{path}'"]] for n, path in enumerate(pictures)})
    )
    settings = GenerationSettings(batch_size=4, max_new_tokens=5)
    answers = DialogueRunner(*model_and_processor, settings).run(load_dialogues(file))
    expected = {f"what is it, {n}?": given[0].strip() for n, given in enumerate(answers)}
    assert dict(json.loads(said.read_text())) == expected


def test_an_evaluation_that_fails_is_an_exit_status(monkeypatch, tmp_path):
    from lmms_eval import __main__ as command

    from eval import lmms_eval_model

    def fails(settings):
        raise ValueError("no such task")

    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "plugin_of_lmms_eval.py").write_text("")
    given = ["--checkpoint_path", "somewhere", "--plugin", str(tmp_path / "plugin_of_lmms_eval.py")]
    given += ["--tasks", "none", "--model_args", "dtype=auto"]
    for evaluate, status in ((fails, 1), (lambda settings: (None, None), 0)):
        monkeypatch.setattr(command, "cli_evaluate_single", evaluate)
        assert lmms_eval_model.main(given) == status
        assert command.cli_evaluate_single is evaluate
        assert sys.argv[3:] == ["--model_args", "checkpoint_path=somewhere,dtype=auto", "--tasks", "none"]
    assert "plugin_of_lmms_eval" in sys.modules


def test_messages_become_a_dialogue():
    from eval.lmms_eval_model import dialogue_of

    picture = Image.new("RGB", (8, 8))
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "A?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "B?"}, {"type": "text", "text": "C?"}]},
    ]
    first, second = dialogue_of(messages, "task 1").turns
    assert first.question == "Be brief.\nA?" and len(first.images) == 1 and first.references == ("yes",)
    assert second.question == "B?\nC?" and not second.images and not second.references
    with pytest.raises(ValueError, match="task 1: there is no question to answer"):
        dialogue_of(messages[:3], "task 1")
    with pytest.raises(ValueError, match="video is not something"):
        dialogue_of([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "task 1")
