"""Every command: from every folder, without arguments, with wrong ones, with --help, and at Ctrl-C while it loads."""

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_COMMANDS = {
    "utils.model.sizes": "prints a table, and takes no flags",
    "eval.lmms_eval_model": "lmms-eval's own command, where that is installed",
}
HEAVY = {"torch", "transformers", "gradio", "deepspeed", "datasets"}
NEED_NO_ARGUMENTS = {
    "helper.compare",
    "helper.demo",
    "helper.make_tiny_models",
    "helper.make_tiny_world",
}


def commands() -> list[str]:
    """The modules that are programs, by their last lines."""
    found = []
    for part in ("training", "chat", "eval", "helper", "utils"):
        for path in (ROOT / part).rglob("*.py"):
            if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found.append(name.removesuffix(".__main__"))
    return sorted(set(found) - set(NO_COMMANDS))


COMMANDS = commands()


def call(folder: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line given in a folder, with this Python for scripts that look for one."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "DS_ACCELERATOR": "cpu", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


def main_of(module: str):
    name = module if (ROOT / (module.replace(".", "/") + ".py")).is_file() else f"{module}.__main__"
    return importlib.import_module(name).main


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder whose files are called as the project's packages."""
    for name in ("chat", "training", "eval", "helper"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another file of this name')")
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise SystemExit('another folder of this name')")
    return tmp_path


SCRIPTS = [
    ("chat/chat_scripts/run.sh", ["--help"], {}, "python -m chat.chat"),
    ("eval/eval_scripts/run_batch.sh", ["--help"], {}, "python -m eval.batch_generation"),
    *(
        (f"training/training_scripts/{name}.sh", ["--help"], {"DRY_RUN": "1", "BATCH": "1"}, "helper.dry_run")
        for name in ("run_7b", "run_13b", "run_70b", "run_tiny", "two_nodes")
    ),
    ("chat/chat.py", ["--help"], {}, "python -m chat.chat"),
    ("eval/batch_generation.py", ["--help"], {}, "python -m eval.batch_generation"),
    ("training/main.py", ["--help"], {}, "python -m training.main"),
]


PLACED = [
    (place, *each)
    for each in SCRIPTS
    for place in ("root", "own", "parent", "foreign")
    # The scripts of training share launch.sh: one of them is called from everywhere.
    if place == "foreign" or "run_tiny" in each[0] or "training_scripts" not in each[0]
]


@pytest.mark.parametrize("place, script, words, values, shown", PLACED)
def test_scripts_and_files_work_from_every_folder(foreign, place, script, words, values, shown):
    own = (ROOT / script).parent
    folder = {"root": ROOT, "own": own, "parent": own.parent, "foreign": foreign}[place]
    path = os.path.relpath(ROOT / script, folder) if place != "foreign" else ROOT / script
    program = "bash" if script.endswith(".sh") else sys.executable
    done = call(folder, program, path, *words, **values)
    assert done.returncode == 0, done.stderr
    assert f"usage: {shown}" in done.stdout or f"usage: python -m {shown}" in done.stdout
    assert done.stderr == ""


def test_where_chat_py_hides_its_package_one_line_says_what_to_do():
    done = call(ROOT / "chat", sys.executable, "-m", "chat.serving", "--help", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr == f"error: chat.py hides the package chat here: give the command in {ROOT}\n"


@pytest.mark.parametrize(
    "script",
    [
        "chat/chat_scripts/run.sh",
        pytest.param("eval/eval_scripts/run_batch.sh", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_given_to_a_script_is_looked_for_in_the_callers_folder(foreign, script):
    (foreign / "base").symlink_to(ROOT / "assets" / "tiny_llama")
    assert call(foreign, "bash", ROOT / script).returncode == 2
    done = call(foreign, "bash", ROOT / script, "base", OUTPUT=str(foreign / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --checkpoint_path base is a model of type llama"), done.stderr


@pytest.mark.slow
def test_paths_after_a_trainings_script_mean_the_callers_folder(foreign):
    (foreign / "mine").symlink_to(ROOT / "assets" / "tiny_llama")
    script = ROOT / "training" / "training_scripts" / "run_tiny.sh"
    (foreign / "my.json").write_text("[]")
    words = ["--lm_model_name_or_path", "mine", "--dataset_names", "my.json"]
    words += ["--dataset_concatenate_samples", "1"]
    done = call(foreign, "bash", script, *words, DRY_RUN="1", GPU_MEMORY="2")
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    assert "missing" not in done.stdout.split("dataset")[-1]


def test_a_job_of_slurm_is_not_started_by_hand():
    done = call(ROOT, "bash", ROOT / "training" / "training_scripts" / "slurm.sh")
    assert done.returncode == 2
    assert done.stderr.startswith("error: this is a job for SLURM: start it with sbatch")


HELP = """
import runpy, sys
sys.argv = [{module!r}, "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code
print("imported:", *sys.modules)
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_help_imports_nothing_heavy(module):
    done = call(ROOT, sys.executable, "-c", HELP.format(module=module))
    assert done.returncode == 0, done.stderr
    help_text, _, imported = done.stdout.partition("imported: ")
    assert len(help_text.splitlines()) > 3
    assert not HEAVY.intersection(imported.split())


def test_help_shows_every_flag_of_training_with_its_default():
    from training.arguments import DataArguments, ModelArguments, RunArguments

    shown = call(ROOT, sys.executable, "-m", "training.main", "--help").stdout
    for kind in (ModelArguments, DataArguments, RunArguments):
        for name in kind.__dataclass_fields__:
            assert re.search(rf"^  --{name}\b", shown, re.MULTILINE), name
    words = " ".join(shown.split())
    assert "--zero_stage 0|1|2|3 ZeRO stage. (default: 0)" in words
    assert "Peak learning rate. (default: 0.001)" in words and "--help_all" in words


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, out + err
    return err


@pytest.mark.parametrize("module", sorted(set(COMMANDS) - NEED_NO_ARGUMENTS))
def test_without_arguments_one_line_says_what_is_missing(module, capsys):
    with pytest.raises(SystemExit) as ended:
        main_of(module)([])
    assert ended.value.code == 2
    assert "required: " in one_line(capsys)


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_a_flag_that_is_none_is_named(module, capsys):
    needed = {"--checkpoint_path": "x", "--output": "x", "--lm_model_name_or_path": "x", "--model": "x"}
    words = ["x", *(word for pair in needed.items() for word in pair), "--nonsense"]
    if module not in ("eval.report", "eval.judge", "training.run_report"):
        words = words[1:]
    with pytest.raises(SystemExit) as ended:
        main_of(module)(words)
    assert ended.value.code == 2
    line = one_line(capsys)
    assert re.search(r"--nonsense|unrecognized arguments|unknown flag", line)


UNWRITABLE = [
    ("eval.batch_generation", ["--checkpoint_path", "x", "--output_filename", "{file}/out"]),
    ("helper.check_data", ["{models}", "--dataset_names", "my.json", "--output_dir", "{file}/out"]),
    ("helper.compare", ["--docs", "{file}/out"]),
    ("helper.demo", ["--output", "{file}/out"]),
    ("helper.extract_qwen_vl", ["--output", "{file}/out"]),
    ("helper.make_tiny_models", ["--output", "{file}"]),
    ("helper.make_tiny_world", ["--output", "{file}/out"]),
]


@pytest.mark.parametrize("module, words", UNWRITABLE, ids=[module for module, _ in UNWRITABLE])
def test_a_folder_that_cannot_be_written_is_told_at_once(module, words, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    models = f"--lm_model_name_or_path {ROOT}/assets/tiny_llama --vision_model_name_or_path {ROOT}/assets/tiny_clip"
    line = " ".join(words).format(file=tmp_path / "file", models=models)
    assert main_of(module)(line.split()) == 2
    assert f"cannot write to the folder {tmp_path / 'file'}" in one_line(capsys)


LOADS_FOR_EVER = "import time\nprint('loading', flush=True)\ntime.sleep(100)\n"


@pytest.mark.parametrize(
    "words",
    [
        "training.main --lm_model_name_or_path x",
        "chat.chat --checkpoint_path x",
        pytest.param("chat.web --checkpoint_path x", marks=pytest.mark.slow),
        pytest.param("chat.serving --checkpoint_path x", marks=pytest.mark.slow),
        "eval.batch_generation --checkpoint_path x",
        pytest.param("helper.check_data --lm_model_name_or_path x", marks=pytest.mark.slow),
        "helper.make_tiny_models --output {here}",
        pytest.param("helper.plan_memory --lm_model_name_or_path x", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_loading_is_one_line(words, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(LOADS_FOR_EVER)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"model_type": "visual_chat"}')
    command = words.format(here=tmp_path).split()
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted\n")
