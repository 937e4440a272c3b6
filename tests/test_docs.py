"""Every command in README.md and docs/, indented, fenced or within a sentence: what it names is there, and it runs.

It runs for real on a small world and at the smallest sizes, as a dry run where it starts a training, and is collected
where it is a test. What is not run has a reason in `NOT_RUN`.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import PIL.Image
import pytest

import visualchat
from training.recipe import flags_of
from utils.data import DATASETS, build_dataset

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "chat": ROOT / "tests" / "chat" / "serving" / "test_documentation.py",
    "comparison": ROOT
    / "tests"
    / "helper"
    / "comparison"
    / "test_comparison.py",  # the page is written by its program
}
FILES = {path.stem: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PAGES = [page for page in FILES if page not in ELSEWHERE]
WITHOUT_COMMANDS = {"architecture", "datasets", "differences"}
NOT_RUN = {
    "helper.extract_qwen_vl": "reads a published checkpoint",
    "--push_to_hub": "needs a hub",
    "eval.judge": "needs an endpoint; tests/eval/test_judge.py has one",
    "eval.lmms_eval_model": "needs lmms-eval; tests/eval/test_lmms_eval_model.py runs it where that is installed",
    "sbatch": "needs SLURM",
    "benchmarks.gpu": "needs a GPU; tests/benchmarks/test_gpu.py runs it in miniature",
    "benchmarks.everything": "runs the other commands of its page at full size",
    "chat.serving": "runs until it is stopped; tests/chat/serving starts it",
    "chat.web": "runs until it is stopped; tests/chat/test_web.py starts it",
    "tensorboard": "runs until it is stopped",
    "visualchat ": "tests/test_visualchat.py trains by recipes, which name published models",
    "make ": "the tests are started so, and tests/helper/test_demo.py runs the demonstration",
    "source ": "changes a shell's environment",
    "pip install": "changes the environment",
    "apt install": "changes the system",
    "wandb": "needs an account",
    "digits": "needs scikit-learn and the demonstration's parts",
}
PARTS = ("training", "chat", "eval", "helper", "benchmarks", "utils")
WORLD = "--records 20"
SMALL_EVALUATION = (
    "eval.batch_generation --checkpoint_path output/tiny/final --eval_data data/miniature/eval/miniature.json"
    " --output_filename output/evaluation/shared"
)
STAND_INS = {
    "output/demo/": "output/tiny/",
    "/runs/7b/checkpoint-500": "output/tiny/checkpoint-2",
    "/runs/7b/": "output/tiny/",
    "--lm_model_name_or_path meta-llama/Llama-2-7b-hf --data_path /data": (
        "--lm_model_name_or_path assets/tiny_llama --vision_model_name_or_path assets/tiny_clip"
        " --data_path data/miniature"
    ),
    "/runs/check": "output/check",
    "--eval_data eval_comprehensive": "--eval_data data/miniature/eval/miniature.json --output_filename output/readme",
    "eval/results/eval_comprehensive.json": "output/readme.json",
    "OUTPUT_DIR=/runs/": "OUTPUT_DIR=output/",
    "=/data": "=data/miniature",
    "/models/my_encoder": "assets/tiny_clip",
    "/local_ssd": "output",
    "MASTER_ADDR=node1": "MASTER_ADDR=localhost",
    "~/.cache/visualchat": "output/cache",
    # Smaller sizes, and no choice of a core, which a machine may not have.
    "taskset -c 1 ": "",
    "make_tiny_world --output data/miniature": f"make_tiny_world --output data/second {WORLD}",
    "--nproc_per_node 8 -m eval.batch_generation ...": f"--nproc_per_node 2 -m {SMALL_EVALUATION}",
    "benchmarks.memory": "benchmarks.memory --stages 0 --length 64 --images 1 --width 64 --layers 1 --vocabulary 320",
    "--dialogues 300": "--dialogues 8 --rounds 1",
    "--gigabytes 3": "--gigabytes 0.01",
    "benchmarks.attention": "benchmarks.attention --rounds 1 --sizes 64+1 --heads 2x16",
    "benchmarks.layer": "benchmarks.layer --rounds 1 --sizes 16+1",
    "benchmarks.saving --size tiny --layers 1 --rounds 5": "benchmarks.saving --size tiny --rounds 1",
    "benchmarks.train_step": "benchmarks.train_step --rounds 1 --size tiny --text 64 --images 1",
    "--size 120m --rounds 2": "--size tiny --rounds 1 --images 2",
    "--size 1b": "--size tiny --rounds 1 --images 2",
    "--size 120m --pictures 1 --tokens 4": "--size tiny --pictures 1 --tokens 2 --questions 2 --rounds 1",
    "--size 120m --pictures 4 --batch_size 40": "--size tiny --questions 2",
    "--size 120m --pictures 2 --images 2": "--size tiny --questions 2 --images 2",
    "benchmarks.serving --size 120m": "benchmarks.serving --size tiny --requests 2",
    "--size 120m --tokens 8": "--size tiny --tokens 2 --contexts 600 --images 1 --rounds 1",
}
PROGRAMS = "python -m|bash|torchrun|sbatch|taskset|pytest|pip|apt|wandb|tensorboard|visualchat|make|source"
COMMAND = re.compile(rf"(until )?([A-Z_0-9]+=\S+ )*({PROGRAMS}) \S")
NO_COMMAND = re.compile(
    r"step \d|largest batch|error: |[\d.]+ (N|x 4 L H d) |case |done$|@article|\}|(and )?[\w ]+(=\{|,)"
)  # output, formulas, a citation
FOREIGN_FLAGS = {"--nproc_per_node", "--nnodes", "--nodes", "--tasks"}  # torchrun's, sbatch's, lmms-eval's
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def indented_lines(page: str) -> list[str]:
    """The lines of a page's blocks of code, in order, continued ones joined and comments taken off."""
    text = FILES[page].read_text(encoding="utf-8")
    text = FENCE.sub(
        lambda found: re.sub("^", "    ", found[2], flags=re.M) if found[1] == "bash" else "", text
    )
    lines = re.findall(r"^ {4,}(\S(?:\\\n|[^\n])*)$", text, re.MULTILINE)
    joined = [re.sub(r"\s*\\\n\s*", " ", line) for line in lines]
    return [re.sub(r"\s+# .*", "", line) for line in joined]


def commands_of(page: str) -> list[str]:
    """The commands of a page, those of its blocks first, then those within sentences and tables."""
    text = FENCE.sub("", FILES[page].read_text(encoding="utf-8"))
    text = re.sub(r"^ {4,}\S.*$", "", text, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    found = [line for line in [*indented_lines(page), *spans] if COMMAND.match(line)]
    return list(dict.fromkeys(re.sub(r"^until (.*); do$", r"\1", line) for line in found))


def python_blocks(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return [code for kind, code in FENCE.findall(FILES[page].read_text(encoding="utf-8")) if kind == "python"]


ALL = [(page, command) for page in PAGES for command in commands_of(page)]
EACH = pytest.mark.parametrize(
    "page, command", ALL, ids=[f"{page}-{number}" for number, (page, _) in enumerate(ALL)]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with data, output and files of its own, and a model trained for two steps in it."""
    folder = tmp_path_factory.mktemp("repository")
    for entry in (*PARTS, "assets", "docs", "recipes", "visualchat.py"):
        (folder / entry).symlink_to(ROOT / entry)
    (folder / "my_images").mkdir()
    (folder / "my.json").write_text(
        '[{"id": "1", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi."}]}]'
    )
    (folder / "mine.json").write_text('{"zero_optimization": {"stage": 2}, "train_batch_size": "auto"}')
    (folder / "my_hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    run(folder, f"python -m helper.make_tiny_world --output data/miniature {WORLD}")
    (folder / "my_dataset.py").write_text(python_blocks("add-a-dataset")[0])
    (folder / "my_encoder.py").write_text(python_blocks("add-an-encoder")[0])
    birds = folder / "data" / "miniature" / "birds"
    (birds / "images").mkdir(parents=True)
    PIL.Image.new("RGB", (20, 20)).save(birds / "images" / "7.jpg")
    (birds / "birds.json").write_text('[{"file": "7.jpg", "bird": "a heron"}]')
    few = "MAX_STEPS=2 NUM_GPUS=1 BATCH=2 GLOBAL_BATCH=2 LANG_LORA_DIM=4"
    run(
        folder,
        f"{few} bash training/training_scripts/run_tiny.sh --save_strategy steps --save_steps 1 --eval_strategy no",
    )
    return folder


def run(folder: Path, command: str, **more: str) -> str:
    """Run a command as a reader of the page would, in `folder`; returns what it said."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **more}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources() -> str:
    """All Python and shell code that a command could reach."""
    files = [path for part in PARTS for path in (ROOT / part).rglob("*") if path.suffix in (".py", ".sh")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_every_page_is_read():
    assert {page for page, _ in ALL} == set(PAGES) - WITHOUT_COMMANDS and len(ALL) > 60
    assert all(f"{page}.md" in test.read_text(encoding="utf-8") for page, test in ELSEWHERE.items())
    assert all(any(part in command for _, command in ALL) for part in (*NOT_RUN, *STAND_INS))


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_overlooked(page: str):
    unknown = [
        line for line in indented_lines(page) if not COMMAND.match(line) and not NO_COMMAND.match(line)
    ]
    assert not unknown, "neither a command nor known to be none"


@EACH
def test_what_a_command_names_is_there(page: str, command: str, sources: str):
    if re.match("pip|apt|wandb|tensorboard", command):
        return  # other projects' programs
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if command.startswith("visualchat "):
        name, *words = shlex.split(command)[1:]
        assert name in visualchat.COMMANDS
        if words and (ROOT / "recipes" / f"{words[0]}.yaml").is_file():
            flags_of(words)
    for module in re.findall(r"-m ([a-z_]+\.[a-z_.]+)", command):
        path = ROOT / module.replace(".", "/")
        assert (
            path.with_suffix(".py").is_file() or module == "visualchat" or (path / "__main__.py").is_file()
        ), module
    for word in shlex.split(command):
        if word.endswith((".sh", ".py")) and "=" not in word and not word.startswith("my_"):
            assert (ROOT / word).is_file(), word
    for name in re.findall(r"\b([A-Z_0-9]+)=", command):
        known = re.search(rf"\b{name}\b", sources) or name.startswith("MALLOC_")  # glibc reads these
        assert known, f"nobody reads {name}"
    for flag in set(re.findall(r"(?<!\S)--[a-z_]+", command)) - FOREIGN_FLAGS:
        field = rf"^    {flag[2:]}: "  # of the dataclasses that many flags are made of
        assert re.search(rf"{flag}\b|{field}", sources, re.MULTILINE), f"there is no {flag}"


@pytest.mark.long
@EACH
def test_command(page: str, command: str, place: Path):
    reasons = [reason for part, reason in NOT_RUN.items() if part in command]
    if reasons:
        pytest.skip(f"not run: {reasons[0]}")
    if command.startswith("pytest "):  # that is a test itself: it has to be there
        run(ROOT, f"{command} --collect-only -q")
        return
    for written, stand_in in STAND_INS.items():
        command = command.replace(written, stand_in)
    if "training_scripts/" not in command:
        run(place, command)
        return
    models = {"LM_MODEL": "assets/tiny_llama", "VISION_MODEL": "assets/tiny_clip"}
    processes = "1" if "LAUNCHER=accelerate" in command else "2"  # it starts one on CPUs
    values = {"DATA_PATH": "data/miniature", "NUM_GPUS": processes, "OUTPUT_DIR": "output/tiny", **models}
    said = run(
        place,
        command,
        DRY_RUN="1",
        **{name: value for name, value in values.items() if f"{name}=" not in command},
    )
    assert "training.main" in said


def test_the_script_for_digits_writes_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = SimpleNamespace(images=np.full((20, 8, 8), 16.0), target=np.arange(20) % 10)
    monkeypatch.setitem(sys.modules, "sklearn", ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", SimpleNamespace(load_digits=lambda: drawn))
    monkeypatch.chdir(tmp_path)
    [script] = [code for kind, code in FENCE.findall(FILES["own-data"].read_text()) if kind == "python"]
    exec(script, {})
    parts = [
        build_dataset([str(tmp_path / "data" / "digits" / f"{name}.jsonl")], tmp_path)
        for name in ("learn", "held_out")
    ]
    assert [len(part) for part in parts] == [16, 4]
    assert {each.turns[0].answer for each in parts[1]} == {"zero", "six", "two", "eight"}
    assert parts[1][0].images[0].open().getpixel((0, 0)) == (240, 240, 240)


def test_the_page_of_datasets_has_a_row_for_each_with_its_files_and_where_to_get_them():
    rows = {
        line.split("|")[1].strip(): line
        for line in FILES["datasets"].read_text().splitlines()
        if line[:1] == "|"
    }
    assert list(rows)[2:] == sorted(DATASETS)
    for name, spec in DATASETS.items():
        for part in (*spec.annotations, *spec.images):
            assert f"`{part.path}" in rows[name] and part.origin in rows[name]
            assert all(f"`{Path(later).name}" in rows[name] for later in part.alternatives)
