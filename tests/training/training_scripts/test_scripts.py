"""What the scripts put together, shown by DRY_RUN=1: the command, the memory plan, the datasets."""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from training.arguments.parser import Parser

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "training" / "training_scripts"
SMALL = {"LM_MODEL": ROOT / "assets" / "tiny_llama", "ENCODER": "clip", "MAX_SEQ_LEN": 512}
TINY = {**SMALL, "VISION_MODEL": ROOT / "assets" / "tiny_clip"}
TINY["GPU_MEMORY"] = 1.6  # little, so that no batch of many rows is tried


@dataclass(frozen=True)
class Printed:
    """A dry run: the launcher's words, the flags of training, all that was printed, the exit code."""

    launcher: list[str]
    flags: object
    text: str
    code: int


@pytest.fixture
def called(tmp_path):
    """A script in a folder of its own, with values in its environment."""

    def run(script, *words, **values):
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHON": sys.executable}
        environment |= {"DATA_PATH": "some data", **{name: str(value) for name, value in values.items()}}
        command = ["bash", SCRIPTS / script, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def dry_run(called):
    def run(script, *words, **values):
        done = called(script, *words, DRY_RUN="1", **values)
        assert done.returncode in (0, 1), done.stderr[-2000:]
        command = shlex.split(done.stdout.splitlines()[0])
        start = command.index("training.main") + 1
        flags, unknown = Parser().parse_known_args(command[start:])
        assert unknown == []
        return Printed(command[:start], flags, done.stdout, done.returncode)

    return run


@pytest.mark.slow
def test_run_7b_is_the_published_run(dry_run, tmp_path):
    printed = dry_run("run_7b.sh", "--save_total_limit", "7", NUM_GPUS=8, GPU_MEMORY=80)
    flags = printed.flags
    assert flags.lm_model_name_or_path == "meta-llama/Llama-2-7b-hf"
    assert flags.vision_model_name_or_path == "openai/clip-vit-large-patch14"
    assert (flags.num_train_epochs, flags.learning_rate, flags.num_warmup_steps) == (6, 1e-3, 0.1)
    assert (flags.zero_stage, flags.max_seq_len, flags.attention) == (3, 4096, "mmca")
    assert flags.gradient_checkpointing and flags.enable_tensorboard
    assert 8 * flags.per_device_train_batch_size * flags.gradient_accumulation_steps == 128
    assert flags.dataset_concatenate_samples == [3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert flags.save_total_limit == 7 and flags.data_path == str(tmp_path / "some data")
    assert printed.launcher[1:3] == ["-m", "deepspeed.launcher.runner"]
    assert "7.05B parameters" in printed.text and "This fits." in printed.text
    assert "gathers nothing" in printed.text  # the frozen weights of 7B fit 80 GiB
    assert "missing for sparkles_dialogue" in printed.text and printed.code == 1
    assert all(name in printed.text for name in flags.dataset_names)


@pytest.mark.long
@pytest.mark.parametrize(
    "script, lm_model, vision_model, batch",
    [
        ("run_13b.sh", "meta-llama/Llama-2-13b-hf", "openai/clip-vit-large-patch14", 2),
        ("run_70b.sh", "meta-llama/Llama-2-70b-hf", "qwen-vl-vit", 1),
    ],
)
def test_the_larger_ones_differ_in_little(dry_run, script, lm_model, vision_model, batch):
    printed = dry_run(script, NUM_GPUS=16, MAX_SEQ_LEN=512, MAX_IMAGES=1)
    flags = printed.flags
    assert flags.lm_model_name_or_path == lm_model and flags.vision_model_name_or_path == vision_model
    assert flags.per_device_train_batch_size == batch
    assert 16 * batch * flags.gradient_accumulation_steps == 128
    assert (flags.learning_rate, flags.num_train_epochs, flags.zero_stage) == (1e-3, 6, 3)


@pytest.mark.slow
def test_every_value_comes_from_the_environment(dry_run, tmp_path):
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 2}}')
    (tmp_path / "fast").mkdir()
    values = dict(
        BATCH=4, ACCUMULATION=3, LR=5e-4, EPOCHS=2, DATASETS="llava", DATASET_CONCAT=1, PACKING="true"
    )
    values["DATASET_WEIGHTS"] = 0.5
    values |= dict(VIS_LORA_DIM=8, STALL_TIMEOUT=60, EPOCH_CHECKPOINT_FORM="full")
    printed = dry_run(
        "run_7b.sh", **TINY, **values, OFFLOAD_OPTIMIZER="cpu", OFFLOAD_PARAM="nvme", NVME_PATH="fast"
    )
    flags = printed.flags
    assert (flags.per_device_train_batch_size, flags.gradient_accumulation_steps) == (4, 3)
    assert (flags.learning_rate, flags.num_train_epochs, flags.dataset_names) == (5e-4, 2, ["llava"])
    assert flags.dataset_weights == [0.5] and flags.image_folder is None
    assert (flags.vis_lora_dim, flags.stall_timeout, flags.epoch_checkpoint_form) == (8, 60, "full")
    assert flags.packing and flags.offload_optimizer == "cpu" and flags.offload_param == "nvme"
    assert flags.nvme_path == str(tmp_path / "fast")
    printed = dry_run("run_7b.sh", **TINY, **values, DEEPSPEED_CONFIG="own.json", SHARD_WITHIN="none")
    assert printed.flags.shard_within == "none"
    assert printed.flags.deepspeed_config == str(own) and printed.flags.zero_stage == 0
    assert "ZeRO-2" in printed.text


@pytest.mark.slow
def test_own_data_are_found_where_the_script_is_called(dry_run, tmp_path):
    """A published name is no file, also where a folder is called so; what is not here is below DATA_PATH. Names may
    hold spaces."""
    for file in ("my data.json", "data.json"):
        (tmp_path / file).write_text("[]")
    for folder in ("my pictures", "llava", "saved"):
        (tmp_path / folder).mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    names = {"DATASETS": "my data.json llava  saved\nbelow.jsonl", "IMAGE_FOLDER": "my pictures"}
    printed = dry_run("run_7b.sh", **TINY, **names, DATASET_WEIGHTS="3 1 1 0.5", COLUMNS=500)
    here = [str(tmp_path / name) for name in ("my data.json", "saved", "my pictures")]
    assert printed.flags.dataset_names == [here[0], "llava", here[1], "below.jsonl"]
    assert printed.flags.image_folder == here[2] and f"{here[2]}/" in printed.text
    assert printed.flags.dataset_weights == [3, 1, 1, 0.5]
    assert "missing for below.jsonl: below.jsonl (a path given by you)" in printed.text
    assert "missing for llava: " in printed.text and printed.code == 1


@pytest.mark.slow
def test_run_tiny_can_start_where_its_data_are(dry_run, tmp_path):
    from helper.make_tiny_world import main as draw

    draw(["--output", str(tmp_path / "data"), "--records", "4"])
    printed = dry_run("run_tiny.sh", DATA_PATH="data", GPU_MEMORY=2.5)
    assert printed.code == 0 and "missing" not in printed.text
    assert printed.flags.stage3_gather_layers and printed.launcher[1:3] == ["-m", "deepspeed.launcher.runner"]


@pytest.mark.slow
def test_launchers_and_nodes(dry_run, tmp_path):
    small = {**TINY, "DATASETS": "llava", "DATASET_CONCAT": 1, "NUM_GPUS": 4, "BATCH": 2}
    two = {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node1"}
    words = dry_run("run_7b.sh", **small, **two, LAUNCHER="torchrun").launcher
    assert words[1:3] == ["-m", "torch.distributed.run"]
    options = dict(zip(words[3:-2:2], words[4:-2:2], strict=True))
    assert options["--nnodes"] == "2" and options["--nproc_per_node"] == "4" and options["--node_rank"] == "1"
    assert options["--master_addr"] == "node1" and options["--master_port"] == "29500"
    printed = dry_run("run_7b.sh", **small, HOSTFILE=SCRIPTS / "two_nodes.hostfile")
    assert printed.launcher[printed.launcher.index("--hostfile") + 1] == str(SCRIPTS / "two_nodes.hostfile")
    assert printed.flags.gradient_accumulation_steps == 128 // (16 * 2)
    assert "16 GPUs" in printed.text
    words = dry_run("run_7b.sh", **{**small, "NUM_GPUS": 1}, LAUNCHER="accelerate").launcher
    assert words[1:3] == ["-m", "accelerate.commands.launch"] and "--cpu" not in words


@pytest.mark.parametrize(
    "values, says",
    [
        ({"ENCODER": "vgg"}, "ENCODER=vgg: choose clip, bigg or qwen"),
        ({"LAUNCHER": "mpirun"}, "LAUNCHER=mpirun: choose deepspeed, torchrun or accelerate"),
        ({"NUM_GPUS": 3}, "GLOBAL_BATCH=128 is no multiple of processes x BATCH = 3 x 2"),
        ({"HOSTFILE": "nowhere"}, "no such file; each of its lines is: host slots=8"),
        ({"NNODES": 2}, "NNODES=2: set HOSTFILE, or MASTER_ADDR and NODE_RANK"),
        ({"NNODES": 2, "LAUNCHER": "torchrun"}, "set MASTER_ADDR to the first node"),
        ({"NUM_GPUS": 2, "LAUNCHER": "accelerate"}, "set NUM_GPUS=1, or LAUNCHER=torchrun"),
        ({"ENCODER": "qwen"}, "python -m helper.extract_qwen_vl makes it"),
    ],
)
def test_mistakes_get_one_line(called, values, says):
    done = called("run_7b.sh", **values)
    line = done.stderr.strip()
    assert done.returncode == 2 and line.startswith("error: ") and "\n" not in line and says in line
