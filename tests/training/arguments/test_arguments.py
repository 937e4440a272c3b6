import pytest
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import utils.distributed
from training.arguments.command_line import parse_flags, training_arguments
from training.arguments.model_and_data import images_per_row


@pytest.fixture
def parse(trainings, tmp_path, monkeypatch):
    """Read a command line without starting a process group, and leave no trace of ZeRO-3 in this process."""
    monkeypatch.setattr(utils.distributed, "initialise", lambda use_cpu: None)

    def read(*words, **flags):
        return training_arguments(
            *parse_flags([*trainings.arguments(tmp_path, **flags), "--use_cpu", *words])
        )

    yield read
    unset_hf_deepspeed_config()


@pytest.fixture
def refuse(parse, capsys):
    """The one line that a wrong command line gets."""

    def read(*words, **flags):
        with pytest.raises(SystemExit) as stop:
            parse(*words, **flags)
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    return read


def test_published_defaults(trainings, parse, tmp_path):
    given = (
        "max_seq_len per_device_train_batch_size per_device_eval_batch_size learning_rate num_train_epochs"
    )
    given += " dataset_names attention precision stage3_param_persistence_threshold"
    model, data, arguments = parse(**dict.fromkeys(given.split()))
    assert (model.projector, model.attention_name) == ("linear", "causal")
    assert model.lang_lora_module_name == "model.layers." and model.vis_lora_module_name == "encoder.layers."
    assert (data.dataset_names, data.samples, data.dataset_concatenate_samples) == (
        ["minigpt4"],
        ["all"],
        [1],
    )
    assert (data.max_seq_len, data.max_num_image_per_sample, data.data_train_split_ratio) == (4096, 8, 0.9)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.seed) == (1e-3, 6, 1234)
    assert (arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size) == (2, 2)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.max_grad_norm) == (0.9, 0.95, 1.0)
    assert (arguments.weight_decay, arguments.lr_scheduler_type, arguments.zero_stage) == (0, "cosine", 0)
    assert arguments.dtype == torch.float32  # a CPU


def test_the_2023_command_line(parse):
    model, data, arguments = parse(
        *["--enable_mmca_attention", "--gradient_checkpointing", "--deepspeed"],
        *["--enable_tensorboard", "--local_rank", "0"],
        attention=None,
        vis_proj="vit",
        dataset_samples=["all", "20"],
        dataset_concatenate_samples=["3", "2"],
        dataset_weights=["0.5", "2"],
        learning_rate_pretraining_components=1e-5,
        zero_stage=3,
        stage3_param_persistence_threshold=None,
    )
    assert (model.attention_name, model.projector) == ("mmca", "vit")
    assert (data.samples, data.dataset_concatenate_samples) == (["all", 20], [3, 2])
    assert data.dataset_weights == [0.5, 2]  # not of 2023, but in the same manner
    assert arguments.gradient_checkpointing and arguments.report_to == ["tensorboard"]
    zero = arguments.hf_deepspeed_config.config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_param_persistence_threshold"] == 10_000
    assert zero["stage3_max_live_parameters"] == 30_000_000


@pytest.mark.parametrize(
    "flags, images",
    [
        ({"attention": "mmca"}, ("none", "head", "mean")),
        ({"attention": "mmca", "image_layers": "full"}, ("full", "head", "mean")),
        ({"attention": "mmca", "enable_mmca_attention": True}, ("full", "none", "none")),  # of 2023
        ({"attention": None, "enable_mmca_attention": True}, ("full", "none", "none")),
        ({"attention": "cross"}, ("full", "none", "none")),
        ({"attention": "causal"}, ("full", "none", "none")),
    ],
)
def test_images_stay_out_of_the_layers_under_mmca_unless_it_is_that_of_2023(parse, flags, images):
    model = parse(**flags)[0]
    assert (model.images_go_through, model.gate, model.summary) == images


@pytest.mark.parametrize("value, steps", [(0, 0), (0.1, 10), (1, 100), (2, 2)])
def test_warm_up_counts_steps_or_is_a_share(parse, value, steps):
    assert parse(num_warmup_steps=value)[2].get_warmup_steps(100) == steps


def test_transformers_flags_work_too(parse):
    flags = ["--save_total_limit", "3", "--warmup_steps", "7", "--resume_from_checkpoint", "--bf16"]
    arguments = parse(*flags, precision=None)[2]
    assert (arguments.save_total_limit, arguments.get_warmup_steps(100)) == (3, 7)
    assert arguments.resume_from_checkpoint == "True"
    assert arguments.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "flags, says",
    [
        ({"zero_stage": 5}, "--zero_stage: invalid choice: '5' (choose from"),
        ({"vis_proj": "mlp"}, "--vis_proj: invalid choice: 'mlp'"),
        ({"zero_stages": 1}, "unknown flag --zero_stages: did you mean --zero_stage?"),
        ({"data_path": "/nowhere"}, "--data_path /nowhere: no such folder"),
        ({"lm_model_name_or_path": "/nowhere"}, "--lm_model_name_or_path /nowhere: no such folder"),
        ({"lm_model_name_or_path": "/tmp"}, "no config.json in this folder"),
        ({"dataset_samples": ["1", "2", "3"]}, "--dataset_samples has 3 values for 2 datasets"),
        ({"dataset_weights": "-1"}, "--dataset_weights: give positive numbers"),
        ({"max_num_image_per_sample": 0}, "--max_num_image_per_sample 0: give a positive number"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"enable_mmca_attention": True, "attention": "cross"}, "contradicts --attention cross"),
        (
            {"attention": "causal", "image_layers": "none"},
            "--image_layers none needs --attention mmca or cross",
        ),
        (
            {"attention": "cross", "image_gate": "head"},
            "--image_gate head needs --attention mmca; under cross",
        ),
        ({"only_optimize_lora": True}, "add --lang_lora_dim"),
        ({"train": ["projector", "head"]}, "--train: head is no part: choose of embedding, projector, gate"),
        (
            {"train": ["projector", "gate"], "image_gate": "none"},
            "--train gate: the model has none; add --image_gate head",
        ),
        (
            {"train": ["projector", "encoder"], "cache_vision_features": True},
            "--cache_vision_features needs an encoder that stays as it is: leave it out, or encoder in --train",
        ),
        (
            {"frozen_bits": 4, "train": ["projector", "decoder:top-1"]},
            "--frozen_bits 4 quantises the decoder, so it cannot learn: leave it out of --train",
        ),
        (
            {"frozen_bits": [4, 8, 4]},
            "--frozen_bits 4 8 4: give 4, 8 or 0 for the decoder, then for the encoder",
        ),
        ({"torch_compile": True, "zero_stage": 3}, "--torch_compile needs --zero_stage 0, 1 or 2"),
        ({"torch_compile": True, "use_liger_kernel": True}, "--torch_compile and --use_liger_kernel fuse"),
        ({"frozen_bits": 8, "zero_stage": 3}, "--frozen_bits 8 needs --zero_stage 0, 1 or 2: ZeRO-3 cannot"),
        ({"lora_alpha": 0.0}, "--lora_alpha 0.0: give a positive number"),
        ({"num_warmup_steps": 3, "warmup_steps": 4}, "give one of the two"),
        ({"lm_model_name_or_path": None}, "--lm_model_name_or_path"),
        ({"data_train_split_ratio": 0}, "give a share in"),
        ({"max_images_per_row": 9}, "--max_images_per_row is for packed rows: add --packing"),
        ({"packing": True, "max_images_per_row": 7}, "give at least --max_num_image_per_sample 8"),
        (
            {"packing": True, "max_images_per_row": 39, "tiles": 4},
            "give at least --max_num_image_per_sample 8, each with 4 tiles: 40",
        ),
        ({"tiles": 0}, "--tiles 0: give a positive number"),
        ({"packing": True, "group_by_length": True}, "leave out one of them"),
        ({"train_sampling_strategy": "batch_rebalance"}, "use --packing"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(refuse, flags, says):
    assert says in refuse(**flags)


def test_data_of_ones_own_need_no_data_folder(parse, refuse):
    assert parse(data_path="/nowhere", dataset_names="my.json")[1].dataset_names == ["my.json"]
    line = refuse(data_path="/nowhere", dataset_names=["my.json", "llava"])
    assert "--data_path /nowhere: no such folder" in line


@pytest.mark.parametrize("cores, processes, workers", [(1, 1, 0), (16, 4, 3), (96, 8, 4)])
def test_pictures_are_decoded_beside_training_where_there_are_cores(
    parse, monkeypatch, cores, processes, workers
):
    monkeypatch.setattr(utils.distributed, "cores", lambda: cores)
    monkeypatch.setattr(utils.distributed, "local_world_size", lambda: processes)
    assert parse(dataloader_num_workers=None)[2].dataloader_num_workers == workers


def test_a_packed_row_has_room_for_the_images_of_two_conversations(parse):
    assert images_per_row(parse(packing=True, max_num_image_per_sample=5)[1]) == 10
    assert images_per_row(parse(packing=True, max_images_per_row=30)[1]) == 30
    assert images_per_row(parse(packing=True, max_num_image_per_sample=5, tiles=4)[1]) == 2 * 5 * (1 + 4)
