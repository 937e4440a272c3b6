"""The terminal chat, driven as people and scripts do."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chat import chat
from chat.checkpoint_arguments import contradictions
from utils.model.checkpoint import save_trained_only

ROOT = Path(chat.__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TERM": "xterm"}


def talk(monkeypatch, capsys, checkpoint: Path, lines: list[str], *flags: str) -> str:
    """The transcript of a chat in this process."""
    said = iter(lines)

    def next_line() -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", next_line)
    status = chat.main(
        [
            "--checkpoint_path",
            str(checkpoint),
            "--device_map",
            "cpu",
            "--generation_length_per_round",
            "6",
            *flags,
        ]
    )
    assert status == 0
    return capsys.readouterr().out


def test_rounds_with_and_without_images(monkeypatch, capsys, checkpoint, pictures):
    lines = [
        f"'{pictures[0]}' '{pictures[1]}'",
        "What?",
        "na",
        "Why?",
        str(pictures[2]),
        "And [bold]?",
        "quit",
    ]
    transcript = talk(monkeypatch, capsys, checkpoint, lines)
    assert [transcript.count(f"image {number}: ") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert transcript.count("Answer:") == 3
    assert re.findall(r"new images: (\d)", transcript) == ["2", "0", "1"]
    assert "(24 x 20)" in " ".join(transcript.split())  # a long path wraps its line
    assert "And [bold]?" in transcript


def test_mistakes_cost_a_message(monkeypatch, capsys, checkpoint, pictures):
    lines = [
        "nowhere.png",  # asked again
        "it's.png",
        str(pictures[0]),
        "",  # a question is asked for again
        "Look: <image>",
        "na",  # the round starts again
        "What?",
        " ".join(f"'{path}'" for path in pictures[:9]),
        "clear",
        str(pictures[0]),
        "What?",
    ]
    transcript = talk(monkeypatch, capsys, checkpoint, lines)
    for message in (
        "nowhere.png: there is no such image",
        "No closing quotation",
        "'<image>'",
        "of 8 allowed",
    ):
        assert transcript.count(message) == 1
    assert "A new dialogue" in transcript
    assert transcript.count("image 1: ") == 2 and transcript.count("Answer:") == 2


def test_an_interruption_keeps_the_session(monkeypatch, capsys, checkpoint):
    compute, steps = chat.ChatSession.ask, []

    def interrupted_once(self, *args):
        steps.append(1)
        pieces = compute(self, *args)
        yield next(pieces)
        if len(steps) == 1:
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(chat.ChatSession, "ask", interrupted_once)
    transcript = talk(monkeypatch, capsys, checkpoint, ["", "What?", "", "Why?"])
    assert "Stopped" in transcript and transcript.count("tokens computed") == 1


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
    assert "Answer:" in talk(monkeypatch, capsys, tmp_path / "trained", ["", "What?"], *flags)


@pytest.mark.parametrize(
    "damaged",
    ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "generation_config.json"],
)
def test_a_half_copied_checkpoint_is_one_line(checkpoint, tmp_path, capsys, damaged):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    assert chat.main(["--checkpoint_path", str(folder), "--device_map", "cpu"]) == 1
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith(f"error: {folder}")


@pytest.mark.parametrize("flag", ["--generation_length_per_round", "--max_seq_len", "--max_images"])
def test_numbers_that_make_no_sense_are_usage_errors(flag, capsys):
    with pytest.raises(SystemExit) as raised:
        chat.main(["--checkpoint_path", "x", flag, "0"])
    assert raised.value.code == 2 and f"argument {flag}: 0 is not above 0" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["", "config.json", "model.safetensors", "processor_config.json"])
def test_a_broken_checkpoint_is_one_line(checkpoint, tmp_path, capsys, missing):
    folder = tmp_path / "broken"
    if missing:
        folder.mkdir()
        for path in checkpoint.iterdir():
            if path.name != missing:
                (folder / path.name).symlink_to(path)
    assert chat.main(["--checkpoint_path", str(folder), "--device_map", "cpu"]) == 1
    message = capsys.readouterr().err.strip()
    assert str(folder) in message
    assert len([line for line in message.splitlines() if line.startswith("error:")]) == 1


def test_in_a_pipe_through_the_script_from_another_folder(checkpoint, pictures):
    run = subprocess.run(
        ["bash", ROOT / "chat/chat_scripts/run.sh", checkpoint, "--generation_length_per_round", "5"],
        input="'picture 0.png' 'picture 1.png'\nWhat is it?\n\nAnd?\n",
        cwd=pictures[0].parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Answer:") == 2 and "Question: What is it?" in run.stdout
    assert "image 2: picture 1.png" in run.stdout
    assert "\x1b" not in run.stdout and "Traceback" not in run.stderr


def test_at_a_terminal(checkpoint, pictures):
    flags = ["--checkpoint_path", str(checkpoint), "--generation_length_per_round", "5"]
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # ignored where the tests run in the background of a script
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "chat.chat", *flags], ENVIRONMENT)
    shown = b""

    def wait_for(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            ready, _, _ = select.select([terminal], [], [], 300)
            assert ready, shown
            shown += os.read(terminal, 4096)
        shown = shown.partition(text)[2]

    try:
        wait_for(b"Images:")
        os.write(terminal, b"\x03")  # Ctrl-C at the prompt
        wait_for(b"Stopped")
        wait_for(b"Images:")
        os.write(terminal, f"'{pictures[0]}'\n".encode())
        wait_for(b"Question:")
        os.write(terminal, b"What?\n")
        wait_for(b"Answer:")
        wait_for(b"tokens computed")
        wait_for(b"Images:")
        os.write(terminal, b"quit\n")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    except BaseException:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise
    finally:
        os.close(terminal)
