"""The command: what it loads, and how it answers where nobody sits at a terminal."""

import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from chat import chat
from chat.arguments import contradictions, quantisation
from chat.session import ChatSession
from utils.model.checkpoint import save_trained_only

ROOT = Path(chat.__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def talk(monkeypatch, checkpoint: Path, lines: list[str], *flags: str) -> int:
    """The exit status of a chat in this process, with `lines` for standard input."""
    monkeypatch.setattr("sys.stdin", StringIO("\n".join(lines)))
    short = ["--device_map", "cpu", "--generation_length_per_round", "6"]
    return chat.main(["--checkpoint_path", str(checkpoint), *short, *flags])


def test_lines_of_a_pipe_are_rounds_and_commands(monkeypatch, capsys, checkpoint, pictures):
    lines = [f"/image '{pictures[0]}' '{pictures[1]}'", "What?", "", "Why?"]
    lines += [f"'{pictures[2]}' And [bold]?", "quit", "No"]
    assert talk(monkeypatch, checkpoint, lines) == 0
    answers, notes = capsys.readouterr()
    assert len(answers.splitlines()) == 3 and answers.strip()
    assert [notes.count(f"image {number}: ") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert "(24 x 20)" in notes


def test_one_question_with_its_image(monkeypatch, capsys, checkpoint, pictures):
    flags = ["--image", str(pictures[0]), str(pictures[1]), "--prompt", "What?", "/image", "-"]
    assert talk(monkeypatch, checkpoint, ["Why", "so?"], *flags, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["question"] for each in answers] == ["What?", "/image", "Why\nso?"]  # a prompt is no command
    assert [each["encoded_images"] for each in answers] == [2, 0, 0] and answers[2]["images"] == 2
    assert answers[1]["computed_tokens"] < answers[1]["prompt_tokens"] / 2
    assert {"answer", "end", "prompt_tokens", "tokens_per_second", "seconds_to_first_token"} <= set(
        answers[0]
    )


def test_mistakes_in_a_pipe(monkeypatch, capsys, checkpoint):
    assert talk(monkeypatch, checkpoint, ["/image nowhere.png", "/nothing", "What?"]) == 1
    answers, notes = capsys.readouterr()
    assert len(answers.splitlines()) == 1
    assert "error: nowhere.png: there is no such image" in notes and "/help lists them" in notes
    assert talk(monkeypatch, checkpoint, ["Look: <image>", "What?"], "--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "'<image>'" in lines[0]["error"] and lines[1]["answer"]
    assert talk(monkeypatch, checkpoint, [], "--image", "nowhere.png", "--prompt", "What?") == 1
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_what_nobody_watches(monkeypatch, checkpoint):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatSession, "ask", interrupt)
    assert talk(monkeypatch, checkpoint, ["What?"]) == chat.INTERRUPTED


def test_flags_that_contradict_the_checkpoint_are_pointed_out(model_and_processor):
    def notes(*flags: str) -> str:
        parsed = chat._parser().parse_args(["--checkpoint_path", "x", *flags])
        return "\n".join(contradictions(parsed, model_and_processor[0].config))

    assert notes("--enable_mmca_attention", "--vis_proj", "baseline") == ""
    assert "--vis_proj vit is ignored" in notes("--vis_proj", "vit")
    assert "--lm_model_name_or_path other/model is ignored" in notes("--lm_model_name_or_path", "other/model")


def test_base_models_of_a_trained_only_checkpoint_are_found_by_flag(
    monkeypatch, capsys, model_and_processor, base_models, tmp_path
):
    save_trained_only(*model_and_processor, tmp_path / "trained")
    moved = tmp_path / "moved"
    moved.symlink_to(base_models[0])
    flags = ["--lm_model_name_or_path", str(moved), "--vision_model_name_or_path", str(base_models[1])]
    assert talk(monkeypatch, tmp_path / "trained", ["What?"], *flags) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", ""]
)
@pytest.mark.parametrize("how", ["half", "missing"])
def test_a_broken_checkpoint_is_one_line(checkpoint, tmp_path, capsys, name, how):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    if not name:
        shutil.rmtree(folder)
    elif how == "half":
        (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
    else:
        (folder / name).unlink()
    assert chat.main(["--checkpoint_path", str(folder), "--device_map", "cpu"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and str(folder) in lines[0]


@pytest.mark.parametrize("flag", ["--generation_length_per_round", "--max_seq_len", "--max_images"])
def test_numbers_that_make_no_sense_are_usage_errors(flag, capsys):
    with pytest.raises(SystemExit) as raised:
        chat.main(["--checkpoint_path", "x", flag, "0"])
    assert raised.value.code == 2 and f"argument {flag}: 0 is not above 0" in capsys.readouterr().err


def test_flags_for_placing_the_model():
    def parsed(*flags: str):
        return chat._parser().parse_args(["--checkpoint_path", "x", *flags])

    assert dict(parsed("--max_memory", "0=20GiB", "cpu=60.5GB").max_memory) == {0: "20GiB", "cpu": "60.5GB"}
    four = quantisation(parsed("--load_in_4bit"))
    assert four.load_in_4bit and not four.load_in_8bit and four.bnb_4bit_quant_type == "nf4"
    assert quantisation(parsed("--load_in_8bit")).load_in_8bit and quantisation(parsed()) is None
    for wrong in (
        ["--max_memory", "20GiB"],
        ["--max_memory", "0=much"],
        ["--load_in_4bit", "--load_in_8bit"],
    ):
        with pytest.raises(SystemExit):
            parsed(*wrong)


def test_in_a_pipe_through_the_script_from_another_folder(checkpoint, pictures):
    run = subprocess.run(
        ["bash", ROOT / "chat/chat_scripts/run.sh", checkpoint, "--generation_length_per_round", "5"],
        input="'picture 0.png' 'picture 1.png' What is it?\n\nAnd?\n",
        cwd=pictures[0].parent,
        env={**ENVIRONMENT, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 2 and "image 2: picture 1.png" in run.stderr
    assert "\x1b" not in run.stdout + run.stderr and "Traceback" not in run.stderr
