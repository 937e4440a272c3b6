"""Accuracy while training: which questions are asked, what counts as right, and in trainings as users run them."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from training.metrics.answer_check import AnswerCheck
from training.metrics.progress import explain_first_loss
from utils.commands import UsageError
from utils.data import EncodedDataset, build_dataset
from utils.model import VisualChatConfig, build_processor

COLOURS = ("red", "green", "blue", "grey")


@pytest.fixture(scope="module")
def data(world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 dialogues of two rounds, each of a kind of its own."""
    records = []
    for number in range(30):
        first = {"from": "human", "value": "<image>\nWhat colour is it?", "kind": "colour"}
        second = {"from": "human", "value": "Are you a powerful assistant?", "kind": "text"}
        answers = [{"from": "gpt", "value": said} for said in (COLOURS[number % 4], "It is red.")]
        image = str(world.data / "coco" / "train2017" / f"{number:012d}.jpg")
        records.append({"image": image, "conversations": [first, answers[0], second, answers[1]]})
    file = tmp_path_factory.mktemp("own") / "own.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="module")
def processor(world):
    return build_processor(str(world.language_model), str(world.vision_model))


@pytest.fixture
def rows(processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISUALCHAT_CACHE", str(tmp_path / "cache"))
    return lambda file, longest=512: EncodedDataset(
        build_dataset([str(file)], file.parent), processor, longest, on_bad="skip"
    )


def check(rows, processor, count, seed=3) -> AnswerCheck:
    return AnswerCheck(rows, processor.tokenizer, count, seed, batch_size=1)


class Parrot:
    """A model that says the same to everything, then ends; it remembers prompts, and counts images."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.prompts, self.images = ids, [], 0

    def generate(self, input_ids, attention_mask, mm_token_type_ids, pixel_values, max_new_tokens):
        assert len(self.ids) <= max_new_tokens
        masks = attention_mask.bool()
        self.prompts += [ids[mask].tolist() for ids, mask in zip(input_ids, masks, strict=True)]
        self.images += len(pixel_values)
        return torch.cat([input_ids, torch.tensor([self.ids] * len(input_ids))], dim=1)


@pytest.mark.parametrize("said, reference", [("It is: RED", "It is red."), ("the  Red!", "red")])
def test_right_is_what_equals_the_reference_by_kind(rows, data, processor, said, reference) -> None:
    held_out = rows(data).conversations
    answers = check(rows(data), processor, 40)
    asked = {(each.conversation, each.turn) for each in answers.questions}
    assert len(answers.questions) == len(asked) == 40
    assert {conversation for conversation, _ in asked} == set(range(30))  # each once before any twice
    tokenizer = processor.tokenizer
    ids = tokenizer(said, add_special_tokens=False).input_ids
    model = Parrot([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id])
    answers.max_new_tokens = len(model.ids)

    found = answers.measure(model, lambda batch: batch.inputs)

    # The first round's answer is one of four colours, the second's always the same.
    colours = [conversation for conversation, turn in asked if turn == 0]
    red = sum(held_out[number].turns[0].answer == "red" for number in colours)
    texts = 40 - len(colours)
    assert 0 < red < len(colours)
    right = (red, 0) if reference == "red" else (0, texts)
    assert found.pop("eval_accuracy_seconds") > 0
    assert found == {
        "eval_accuracy": sum(right) / 40,
        "eval_accuracy/colour": right[0] / len(colours),
        "eval_accuracy/text": right[1] / texts,
    }
    prompts = [held_out[each.conversation].until_answer(each.turn) for each in answers.questions]
    encoded = [processor.encode(prompt, load_images=False)["input_ids"].tolist() for prompt in prompts]
    assert model.prompts == encoded == sorted(encoded, key=len)
    assert model.images == 40  # a later round sees the images before it


def test_the_sample_follows_the_seed_and_the_longest_answer_is_the_limit(rows, data, processor) -> None:
    one, same, other = (check(rows(data), processor, 12, seed).questions for seed in (3, 3, 4))
    assert one == same != other
    whole = check(rows(data), processor, 1000)
    assert len(whole.questions) == 60
    for index, conversation in enumerate(rows(data).conversations):
        tokens = [each.answer_tokens for each in whole.questions if each.conversation == index]
        assert sum(tokens) == (processor.encode(conversation, load_images=False)["labels"] >= 0).sum()


def test_questions_with_long_references_are_not_asked(rows, processor, tmp_path) -> None:
    file = tmp_path / "own.json"
    answers = ["red", "It is a red, a green and a blue ball, and all of them are on the same big table."]
    records = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": each}] for each in answers]
    file.write_text(json.dumps([{"messages": each} for each in records]))
    assert [each.reference for each in check(rows(file), processor, 9).questions] == ["red"]
    file.write_text(json.dumps([{"messages": records[1]}]))
    for none in (rows(file), rows(file, 8)):
        with pytest.raises(UsageError, match="--eval_generate 9: no held-out question"):
            check(none, processor, 9)


@pytest.mark.parametrize(
    "loss, attention, says",
    [
        (18.8, "mmca", "--image_gate head --image_layers none"),
        (21.5, "cross", "--num_warmup_steps"),
        (10.9, "mmca", None),
        (math.nan, "mmca", None),
    ],
)
def test_a_first_loss_far_above_guessing_is_explained(loss, attention, says) -> None:
    config = VisualChatConfig(attention=attention)
    config.get_text_config().vocab_size = 49152  # ln V is 10.8
    said = explain_first_loss(loss, config)
    assert (said is None) == (says is None)
    if says:
        assert says in said and f"{loss:.1f}" in said and "10.8" in said and "\n" not in said


@pytest.fixture(scope="module")
def flags(world, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A frozen head that speaks up, so that a projection can make it say something; features are cached."""
    loud = tmp_path_factory.mktemp("loud") / "llama"
    shutil.copytree(world.language_model, loud)
    decoder = LlamaForCausalLM.from_pretrained(loud)
    decoder.lm_head.weight.data.mul_(20)
    decoder.save_pretrained(loud)
    learning = {"lm_model_name_or_path": loud, "learning_rate": 3e-2, "num_train_epochs": 6}
    learning |= {
        "dataset_names": data,
        "data_train_split_ratio": 0.6,
        "data_cache_path": loud.parent / "cache",
    }
    asking = {"eval_generate": 11, "per_device_eval_batch_size": 1, "metric_for_best_model": "accuracy"}
    return {**learning, **asking, "cache_vision_features": True, "enable_mmca_attention": True}


@pytest.fixture(scope="module")
def alone(trainings, flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    printed = trainings.run(trainings.arguments(output, **flags, enable_tensorboard=True))
    assert "11 held-out questions are answered" in printed and "answers right " in printed
    assert "(evaluation accuracy " in printed and list(output.rglob("events.out.tfevents.*"))
    return output


def accuracies(trainings, output: Path) -> list[dict[str, float]]:
    lines = [line for line in trainings.history(output) if "eval_loss" in line]
    wanted = re.compile("eval_accuracy(/.*)?")
    return [{key: value for key, value in line.items() if wanted.fullmatch(key)} for line in lines]


@pytest.mark.slow
def test_accuracy_is_reported_and_best_is_chosen_by_it(trainings, alone: Path) -> None:
    found = accuracies(trainings, alone)
    overall = [each["eval_accuracy"] for each in found]
    assert len(found) == 7 and overall[0] == 0.0 and max(overall) > 0.2
    assert all(set(each) == {"eval_accuracy", "eval_accuracy/colour", "eval_accuracy/text"} for each in found)
    state = json.loads((alone / "trainer_state.json").read_text())
    assert state["best_metric"] == max(overall)
    assert "answers right" in (alone / "summary.md").read_text()


@pytest.mark.slow
def test_two_processes_under_zero_3_count_as_one_does(trainings, alone: Path, flags, tmp_path: Path) -> None:
    """11 questions on two processes, from pixels: one process has one question fewer.

    A gate begins at 1 after published MMCA, which is what that computed.
    """
    again = {"init_from": alone / "final", "max_steps": 1, "learning_rate": 1e-9, "packing": True}
    again |= {"zero_stage": 3, "cache_vision_features": False}
    again |= {"image_gate": "head", "image_gate_learning_rate": 0}
    trainings.run(trainings.arguments(tmp_path / "run", **{**flags, **again}), processes=2)
    assert accuracies(trainings, tmp_path / "run")[0] == accuracies(trainings, alone)[-1]
    evaluations = [line for line in trainings.history(tmp_path / "run") if "eval_loss" in line]
    assert [line["eval_image_gate"] for line in evaluations] == [1, 1]
