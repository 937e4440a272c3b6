"""The command `visualchat`, and the recipes that `train`, `check` and `plan` take."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import visualchat
from training.arguments.command_line import parse_flags
from training.recipe import Processes, flags_of, resolved

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    *("--lm_model_name_or_path", str(ROOT / "assets" / "tiny_llama")),
    *("--vision_model_name_or_path", str(ROOT / "assets" / "tiny_clip")),
]


def parsed(flags: list[str]) -> dict[str, object]:
    return vars(parse_flags(flags)[1])


def test_help_names_every_command_and_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert visualchat.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in visualchat.COMMANDS)
    assert visualchat.main(["--version"]) == 0
    assert capsys.readouterr().out == f"visualchat {visualchat.__version__}\n"


@pytest.mark.parametrize("name", visualchat.COMMANDS)
def test_a_command_answers_help_from_any_folder_without_heavy_imports(name: str, tmp_path: Path) -> None:
    # The console script's folder is searched for modules, the caller's is not.
    (tmp_path / "utils.py").write_text("raise SystemExit('another file of this name')")
    script = tmp_path / "bin" / "visualchat"
    script.parent.mkdir()
    script.write_text("import visualchat\nvisualchat.run()\n")
    (script.parent / "torch.py").write_text("raise SystemExit('torch is imported')")
    done = subprocess.run(
        [sys.executable, script, name, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "which command? choose train, "),
        (["trian"], "there is no command trian: did you mean train?"),
        (["nonsense"], "there is no command nonsense: choose train, "),
        (
            ["train", "7c"],
            "there is no recipe 7c: give a YAML file, or one of 13b, 70b, 70b-4bit, 7b, llama3-8b, small",
        ),
        (
            ["train", "7b", "learnig_rate=1"],
            "recipe 7b: unknown key learnig_rate: did you mean learning_rate?",
        ),
        (["train", "7b", "globl_batch=1"], "recipe 7b: unknown key globl_batch: did you mean global_batch?"),
        (["check", "7b", "adam_bta1=1"], "recipe 7b: unknown key adam_bta1: did you mean adam_beta1?"),
        (["train", "7b", "bf16"], "bf16: after a recipe come changes (key=value), then flags (--key value)"),
        (["train", "7b", "global_batch=100"], "global_batch 100 is no multiple of processes x per_device"),
        (["train", "7b", "global_batch=x"], "global_batch x: give a positive whole number"),
        (["train", "7b", "gradient_accumulation_steps=2"], "global_batch sets the accumulation: leave out"),
        (["plan", "7b", "processes=0"], "processes 0: give a positive whole number"),
        (["train", "7b", "launcher=mpi"], "launcher mpi: choose deepspeed or torchrun"),
        (["train", "list.yaml"], "list.yaml is no recipe: its lines are 'flag: value'"),
        (["train", "torn.yaml"], "torn.yaml is not YAML: "),
        (["train", "."], ".: Is a directory"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- a\n")
    Path("torn.yaml").write_text("a: [1\n")
    assert visualchat.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1


@pytest.mark.parametrize("size", ["7b", "13b", "70b"])
def test_a_recipe_is_its_script(size: str, tmp_path: Path) -> None:
    script = ROOT / "training" / "training_scripts" / f"run_{size}.sh"
    # The script's Python only prints what it would run; the dry run's first line is the command.
    environment = {**os.environ, "DRY_RUN": "1", "PYTHON": "echo", "DS_ACCELERATOR": "cpu", "NUM_GPUS": "8"}
    done = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    command = shlex.split(done.stdout.splitlines()[0])
    of_script = parsed(command[command.index("training.main") + 1 :])
    flags, processes = flags_of([size])
    of_recipe = parsed(flags)
    assert processes == Processes(8, "deepspeed")
    assert of_recipe["lm_model_name_or_path"] == f"meta-llama/Llama-2-{size}-hf"
    places = {"data_path", "output_dir", *(["vision_model_name_or_path"] if size == "70b" else [])}
    assert {key for key in of_script if of_script[key] != of_recipe[key]} <= places


def test_the_small_recipe_is_for_one_gpu() -> None:
    flags, processes = flags_of(["small"])
    values = parsed(flags)
    assert processes.count == 1 and values["packing"] and values["gradient_accumulation_steps"] == 16


def test_changes_come_over_the_recipe_and_the_recipe_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "seed: 1\nlearning_rate: 1e-3\neval_strategy: no\nsave_total_limit: 2\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "base: base.yaml\nlearning_rate: 2e-4\ndataset_names: [a.json, b.json]\n"
    )
    changes = ["seed=3", "dataset_weights=[1, 0.5]", "save_total_limit=", "--packing", "true"]
    flags, processes = flags_of([str(tmp_path / "mine.yaml"), *changes])
    values = parsed([*TINY, *flags])
    assert (values["seed"], values["learning_rate"], values["eval_strategy"]) == (3, 2e-4, "no")
    assert values["dataset_names"] == ["a.json", "b.json"] and values["dataset_weights"] == [1.0, 0.5]
    assert values["save_total_limit"] is None and values["packing"] is True
    assert processes.count == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--data_path", "data", "--dataset_names", "llava", "own.json", "--dataset_samples", "all", "5"],
        ["--eval_strategy", "no", "--learning_rate", "3e-5", "--packing", "true", "--lang_lora_dim", "8"],
        ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-05}'],
        ["--plugin", "plugin_of_a_recipe"],
        [
            *["--gradient_accumulation_steps", "4", "--report_to", "tensorboard", "--run_name"],
            "null and: [void]",
        ],
        [
            "--bf16",
            "--save_only_model",
            "--optim",
            "adamw_torch",
            "--group_by_length",
            "true",
            "--strict",
            "true",
        ],
    ],
)
def test_the_recipe_that_a_run_writes_has_the_same_flags(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("own.json").write_text("[]")
    Path("plugin_of_a_recipe.py").write_text("")
    parser, given = parse_flags([*TINY, *flags, "--overwrite_output_dir", "true"])
    recipe = resolved(given, parser)
    assert recipe["processes"] == 1 and "overwrite_output_dir" not in recipe
    assert recipe["global_batch"] == given.per_device_train_batch_size * given.gradient_accumulation_steps
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    again = parsed(flags_of(["recipe.yaml"])[0])
    wanted = {**vars(given), "overwrite_output_dir": False, "data_path": str(tmp_path / "data")}
    wanted["dataset_names"] = [str(tmp_path / name) if "." in name else name for name in given.dataset_names]
    wanted["plugin"] = [str(tmp_path / f"{name}.py") for name in given.plugin]
    assert again == wanted


@pytest.mark.slow
def test_a_recipe_trains_in_two_processes_and_the_runs_own_recipe_repeats_it(tmp_path: Path) -> None:
    record = '{"id": "%d", "conversations": [{"from": "human", "value": "Hi %d?"}, {"from": "gpt", "value": "Yes."}]}'
    (tmp_path / "own.json").write_text(f"[{','.join(record % (number, number) for number in range(8))}]")
    (tmp_path / "mine.yaml").write_text(
        f"lm_model_name_or_path: {TINY[1]}\nvision_model_name_or_path: {TINY[3]}\nattention: mmca\n"
        f"dataset_names: {tmp_path}/own.json\n"  # its path decides about the order
        "max_seq_len: 64\nglobal_batch: 4\nper_device_train_batch_size: 1\nprocesses: 2\n"
        "max_steps: 2\neval_strategy: no\nsave_strategy: no\noutput_dir: first\nzero_stage: 2\n"
    )
    train = [sys.executable, "-m", "visualchat", "train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for words in (["mine.yaml", "launcher=torchrun"], ["first/recipe.yaml", f"output_dir={tmp_path}/second"]):
        done = subprocess.run([*train, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    recipes = [yaml.safe_load((tmp_path / run / "recipe.yaml").read_text()) for run in ("first", "second")]
    assert (recipes[0]["processes"], recipes[0]["global_batch"]) == (2, 4)
    assert "gradient_accumulation_steps" not in recipes[0]
    assert recipes[1] == {**recipes[0], "output_dir": str(tmp_path / "second")}
    first, second = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
