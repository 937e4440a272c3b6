import json
import re

import pytest
from transformers import TrainingArguments

from helper.plan_memory import add_flags, main
from training.arguments.command_line import parse_flags
from training.memory.from_flags import training_of

pytestmark = pytest.mark.integration

TINY = ["--lm_model_name_or_path", "assets/tiny_llama", "--vision_model_name_or_path", "assets/tiny_clip"]
TINY += ["--gpu_memory", "1.6"]  # little, so that no batch of many rows is tried


def plan(capsys, *words, code=0):
    assert main([*TINY, "--max_seq_len", "128", "--enable_mmca_attention", *words]) == code
    return capsys.readouterr()


def test_it_says_what_fits(capsys):
    text = plan(capsys, "--gpus", "8", "--zero_stage", "3").out
    assert "8 GPUs" in text and "ZeRO-3, no checkpointing" in text
    for kind in ("weights, as this process holds them", "optimizer states", "activations at the peak"):
        assert kind in text
    assert "This fits." in text and "images a row" in text
    assert "Cheapest setting that fits this batch: ZeRO-2, no checkpointing" in text
    assert "gathers nothing" in text


def test_it_says_where_to_split_frozen_weights(capsys):
    """On one node the network is not used; on two it is, and frozen weights that stay in theirs spare it."""
    words = ("--zero_stage", "3", "--gpus", "4", "--bandwidths", "10", "100")
    text = plan(capsys, *words).out
    assert "ZeRO-3 on 1 node: " in text and not re.search("^node ", text, re.MULTILINE)
    text = plan(capsys, *words, "--gpus_per_node", "2").out
    assert "ZeRO-3 on 2 nodes: what a step sends, at 10 GB/s into a node and 100 GB/s into a GPU" in text
    assert all(re.search(f"^{name} .* fits ", text, re.MULTILINE) for name in ("none", "node", "all"))
    recommended = [line for line in text.splitlines() if line.startswith("Cheapest setting")]
    assert len(recommended) == 1 and "ZeRO-2" in recommended[0]
    assert "--shard_within node" in plan(capsys, *words, "--shard_within", "node").out.splitlines()[0]


def test_quantised_weights_are_planned_and_not_split(capsys):
    text = plan(capsys, "--gpus", "2", "--zero_stage", "2", "--frozen_bits", "4").out
    assert "Cheapest setting that fits this batch: ZeRO-2, frozen decoder in 4 bits, no checkpointing" in text
    assert "stage 3" not in text
    assert main([*TINY, "--zero_stage", "3", "--frozen_bits", "4"]) == 2
    assert "--frozen_bits 4 needs --zero_stage 0, 1 or 2" in capsys.readouterr().err
    text = plan(capsys, "--frozen_bits", "4", "8").out
    assert "frozen decoder in 4 bits, frozen encoder in 8 bits" in text
    resnet = ("--frozen_bits", "4", "8", "--vision_model_name_or_path", "RN50/openai")
    assert main([*TINY, *resnet]) == 2
    assert "no matrices to quantise: give --frozen_bits one number, the decoder's" in capsys.readouterr().err


def test_it_says_what_does_not(capsys):
    text = plan(capsys, "--gpu_memory", "1", code=1).out
    assert "This does not fit." in text and "one row alone is too much" in text
    assert "No setting fits this batch" in text


def test_offloading_shows_main_memory(capsys):
    text = plan(capsys, "--zero_stage", "3", "--offload_param", "cpu", "--gpus", "2").out
    assert "in main memory, for each GPU" in text and "weights on cpu" in text


def test_adapters_and_packing_are_planned(capsys):
    text = plan(capsys, "--lang_lora_dim", "4", "--packing", "true", "--max_images_per_row", "9").out
    assert "This fits." in text


@pytest.mark.parametrize(
    "words, images", [([], 2), (["--tiles", "4"], 2 * 5), (["--tiles", "4", "--packing", "true"], 2 * 2 * 5)]
)
def test_tiles_are_planned_as_images(words, images):
    words = [*TINY, "--max_seq_len", "1024", "--max_num_image_per_sample", "2", *words]
    flags = parse_flags(words, "python -m helper.plan_memory", add_flags=add_flags)[1]
    assert training_of(flags, flags.gpus).batches[0].images == images


def test_the_newer_name_of_gradient_checkpointing_counts(capsys):
    if not hasattr(TrainingArguments, "activation_checkpointing"):
        pytest.skip("transformers has one name for it")
    assert "ZeRO-0, checkpointing" in plan(capsys, "--activation_checkpointing", "true").out
    words = ["--activation_checkpointing", "false", "--gradient_checkpointing", "true"]
    assert "ZeRO-0, no checkpointing" in plan(capsys, *words).out


def test_automatic_values_of_a_configuration_are_those_of_transformers(tmp_path):
    path = tmp_path / "mine.json"
    names = ("reduce_bucket_size", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size")
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, **dict.fromkeys(names, "auto")}}))
    words = [*TINY, "--gpus", "2", "--deepspeed_config", str(path)]
    flags = parse_flags(words, "python -m helper.plan_memory", add_flags=add_flags)[1]
    training = training_of(flags, flags.gpus)
    width = training.config.text_config.hidden_size
    assert training.sharding.stage == 3 and training.sharding.reduce_bucket == width**2
    assert training.sharding.persistence_threshold == 10 * width


@pytest.mark.parametrize(
    "words, says",
    [(["--gpus", "0"], "--gpus: 0 is no positive"), (["--supervised_share", "2"], "2 is no share")],
)
def test_a_plan_for_nothing_is_refused(capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        main([*TINY, *words])
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, says",
    [
        (["--max_seq_len", "4"], "--max_seq_len 4 has no room for an image"),
        (["--deepspeed_config", "/nowhere.json"], "no such file"),
        (["--bandwidths", "0", "300"], "--bandwidths 0 300: give two positive numbers"),
        (["--zero_stage", "2", "--shard_within", "node"], "--shard_within node needs --zero_stage 3"),
    ],
)
def test_mistakes_get_one_line(capsys, words, says):
    printed = plan(capsys, *words, code=2).err
    assert says in printed and printed.startswith("error: ")
