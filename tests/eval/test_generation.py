"""Batches of dialogues against the chat, which knows no batches; and the one renderer under both."""

from functools import wraps

import numpy as np
import pytest
import torch

from chat.generation.sampling import Sampling
from chat.session import ChatSession
from eval.dialogues import EvalDataError, EvalDialogue, EvalTurn, load_dialogues
from eval.generation import DialogueRunner, GenerationSettings
from utils.conversation import Conversation, Image, Turn


def run(model_and_processor, dialogues, keep_images=True, **settings) -> list[list[str | None]]:
    settings = GenerationSettings(max_new_tokens=8, **settings)
    return DialogueRunner(*model_and_processor, settings, keep_images=keep_images).run(dialogues)


@pytest.mark.parametrize("kind", [("mmca",), ("mmca", "head"), ("causal",)], ids=" ".join)
def test_batched_answers_equal_single_answers_and_the_chat(build, mixed_set, kind):
    parts = build(*kind)
    dialogues = load_dialogues(mixed_set)
    together = run(parts, dialogues, batch_size=3)
    assert together == run(parts, dialogues, batch_size=3, keep_images=False)
    assert together == run(parts, dialogues, batch_size=1) == run(parts, dialogues, batch_size=8)
    session = ChatSession(*parts, max_new_tokens=8)
    for dialogue, answers in zip(dialogues, together, strict=True):
        session.clear()
        for turn, answer in zip(dialogue.turns, answers, strict=True):
            assert "".join(session.ask(turn.question, turn.images)) == answer
    assert len({answer for answers in together for answer in answers}) > 3


def test_training_chat_and_evaluation_see_the_same_ids_images_and_numbers(
    model_and_processor, mixed_set, monkeypatch
):
    """Two images, a round without, a third image: ids, kinds and pixels of all three uses."""
    model, processor = model_and_processor
    several = load_dialogues(mixed_set)[2]
    turns = [several.turns[0], load_dialogues(mixed_set)[0].turns[1], several.turns[1]]
    dialogue = type(several)("three images", tuple(turns))
    seen: list[dict] = []
    forward = type(model).forward

    @wraps(forward)  # transformers reads the signature
    def spy(self, **inputs):
        seen.append(inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", spy)

    (answers,) = run(model_and_processor, [dialogue], keep_images=False)
    prompts_of_evaluation = [inputs for inputs in seen if inputs["input_ids"].shape[1] > 1]
    seen.clear()
    session = ChatSession(model, processor, max_new_tokens=8, keep_images=False)
    for turn in turns:
        list(session.ask(turn.question, turn.images))
    prompts_of_chat = [inputs for inputs in seen if inputs["input_ids"].shape[1] > 1]

    training = Conversation(
        tuple(Turn(turn.question, answer, turn.images) for turn, answer in zip(turns, answers, strict=True))
    )
    for number, evaluated in enumerate(prompts_of_evaluation):
        prompt = processor.encode(training.until_answer(number))
        lesson = processor.encode(training)
        length = len(prompt.input_ids)
        assert np.array_equal(lesson.input_ids[:length], prompt.input_ids)
        assert torch.equal(lesson.pixel_values[: len(prompt.pixel_values)], prompt.pixel_values)
        for used in (evaluated, prompts_of_chat[number]):  # both read what is new in the dialogue
            new = used["input_ids"].shape[1]
            assert np.array_equal(used["input_ids"][0], prompt.input_ids[-new:])
            assert np.array_equal(used["mm_token_type_ids"][0], prompt.mm_token_type_ids)
    assert len(prompts_of_evaluation) == len(prompts_of_chat) == 3
    for used in (prompts_of_evaluation, prompts_of_chat):
        pixels = [inputs.get("pixel_values") for inputs in used]
        assert pixels[1] is None
        assert torch.equal(torch.cat([pixels[0], pixels[2]]), processor.encode(training).pixel_values)
    text = processor.tokenizer.decode(processor.encode(training).input_ids)
    assert [text.count(f"### Image {number}: ") for number in (1, 2, 3, 4)] == [1, 1, 1, 0]


@pytest.mark.parametrize("attention, keep_images", [("mmca", True), ("mmca", False), ("causal", True)])
def test_a_picture_goes_through_the_encoder_once_in_a_batch(build, pictures, attention, keep_images):
    model, processor = build(attention)
    shown = [Image(picture) for picture in pictures[:2]]
    dialogues = [
        EvalDialogue(f"{number}", (EvalTurn(f"Question {number}?", images=(shown[number % 2],)),))
        for number in range(6)
    ]
    alone = [run((model, processor), [dialogue], keep_images=False)[0] for dialogue in dialogues]
    encoded: list[int] = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args: encoded.append(len(args[0]))
    )
    together = run((model, processor), dialogues, keep_images=keep_images, batch_size=6)
    hook.remove()
    assert together == alone and sum(encoded) == 2


def test_the_history_may_be_the_references(model_and_processor, mixed_set):
    several = load_dialogues(mixed_set)[2]
    generated = run(model_and_processor, [several])
    taught = run(model_and_processor, [several], history="reference")
    assert generated[0][0] == taught[0][0]
    session = ChatSession(*model_and_processor, max_new_tokens=8)
    session.turns = (Turn("Compare.", "Red.", session.open_images(several.turns[0].images)),)
    assert "".join(session.ask(several.turns[1].question, several.turns[1].images)) == taught[0][1]
    with pytest.raises(EvalDataError, match=r"'late', turn 1.*--history generated"):
        run(model_and_processor, load_dialogues(mixed_set), history="reference")


def test_a_dialogue_that_outgrows_the_length_is_left_and_the_others_go_on(model_and_processor, mixed_set):
    dialogues = load_dialogues(mixed_set)
    whole = run(model_and_processor, dialogues, batch_size=2)
    short = run(model_and_processor, dialogues, batch_size=2, max_seq_len=150)
    assert short[1] == whole[1]
    left = [answers for answers in short if None in answers]
    assert left and all(answer is None for answers in left for answer in answers[answers.index(None) :])
    assert [len(answers) for answers in short] == [len(dialogue.turns) for dialogue in dialogues]


def test_an_answer_ends_at_the_length_whatever_shares_its_batch(model_and_processor, mixed_set):
    dialogues = load_dialogues(mixed_set)[1:4:2]  # "none", and "late" with a longer question
    model, processor = model_and_processor
    longer = Conversation((Turn(dialogues[1].turns[0].question),))
    limit = len(processor.encode(longer).input_ids) + 3
    answers = run(model_and_processor, dialogues, max_seq_len=limit)
    cut = DialogueRunner(model, processor, GenerationSettings(max_new_tokens=3)).run(dialogues)
    assert answers[1][0] == cut[1][0]
    assert answers[0] == run(model_and_processor, dialogues)[0] != cut[0]


def test_sampled_answers_repeat_with_their_seed(model_and_processor, mixed_set):
    dialogues = load_dialogues(mixed_set)

    def answers(seed: int) -> list[list[str | None]]:
        return run(model_and_processor, dialogues, sampling=Sampling(temperature=2.0, top_p=0.9, seed=seed))

    assert answers(1) == answers(1) != answers(2)
