"""Batches of dialogues against the chat, which knows no batches; and the one renderer under both."""

import pytest

from chat.generation.decoding import Sampling
from chat.session import ChatSession
from eval.dialogues import EvalDataError, EvalDialogue, EvalTurn, load_dialogues
from eval.generation import DialogueRunner, GenerationSettings
from utils.conversation import Conversation, Image, Turn

pytestmark = pytest.mark.integration


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
