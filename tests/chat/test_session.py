"""Rounds of a session against fresh computations of the dialogue, what they cost, and what goes wrong."""

import sys
from itertools import chain

import PIL.Image
import pytest
import torch

from chat.generation.decoding import EMPTY_ANSWER, Sampling, SamplingError, TokenChooser
from chat.generation.engine import eos_token_ids
from chat.session import ChatError, ChatSession
from tests.chat.conftest import generated_answer
from utils.conversation import Conversation, ConversationError, ImageError, Turn


def fresh_answer(session: ChatSession, question: str, images=(), max_new_tokens: int = 12) -> str:
    """The answer that transformers' generate gives to the whole dialogue, nothing cached."""
    turns = (*session.turns, Turn(question, None, session.open_images(images)))
    return generated_answer(session.model, session.processor, Conversation(turns), max_new_tokens)


@pytest.fixture
def session(model_and_processor) -> ChatSession:
    return ChatSession(*model_and_processor, max_new_tokens=12)


KINDS = ["mmca", "mmca head", "cross", "causal", "mmca none no_mlp", "mmca head none", "cross none none"]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_those_of_a_fresh_generate(build, pictures, kind):
    session = ChatSession(*build(*kind.split()), max_new_tokens=12)
    rounds = [(0, "Hello?"), (2, "What are these?"), (0, "And?"), (1, "Compare."), (3, "These?"), (0, "Why?")]
    used, answers = 0, []
    for count, question in rounds:
        images = pictures[used : used + count]
        used += count
        expected = fresh_answer(session, question, images)
        pieces = list(session.ask(question, images))
        assert "".join(pieces) == expected
        assert session.turns[-1].answer == (expected or EMPTY_ANSWER)
        answers.append(expected)
    assert len(set(answers)) > 3  # the model is random, but not constant
    assert [len(turn.images) for turn in session.turns] == [count for count, _ in rounds]


def test_a_round_costs_only_its_new_tokens_and_images(session, pictures, work):
    before = 0
    for images, question in [(pictures[:2], "What?"), ([], "Where?"), ([], "When?"), (pictures[2:3], "Who?")]:
        work.update(tokens=0, images=0)
        list(session.ask(question, images))
        cost = session.statistics[-1]
        assert (cost.computed_tokens, cost.encoded_images) == (work["tokens"], work["images"])
        assert cost.encoded_images == len(images)
        # At most what this question adds to the last round's prompt, and this answer.
        assert cost.computed_tokens <= cost.prompt_tokens - before + cost.generated_tokens
        before = cost.prompt_tokens
    assert session.statistics[1].computed_tokens < session.statistics[1].prompt_tokens / 2


def test_undo_and_retry(session, pictures, work):
    list(session.ask("What?", pictures[:1]))
    answer = "".join(session.ask("And?", pictures[1:3]))
    undone = session.undo()
    assert (undone.question, undone.answer) == ("And?", answer) and len(session.turns) == 1
    work.update(tokens=0, images=0)
    assert "".join(session.ask(undone.question, undone.images)) == answer
    assert work["images"] == 0  # they are in the cache still
    session.clear()
    assert session.conversation is None and session.images == () and session.statistics == ()
    with pytest.raises(ChatError, match="no round"):
        session.undo()


def test_a_loaded_dialogue_goes_on_as_if_it_had_been_held_here(model_and_processor, session, pictures, work):
    list(session.ask("What?", pictures[:2]))
    list(session.ask("Where?"))
    expected = fresh_answer(session, "Why?", pictures[2:3])
    other = ChatSession(*model_and_processor, max_new_tokens=12)
    other.load(session.turns, session.system)
    assert "".join(other.ask("Why?", pictures[2:3])) == expected
    turns = session.turns
    list(session.ask("Who?"))
    session.load(turns)
    work.update(tokens=0, images=0)
    list(session.ask("Who?"))
    cost = session.statistics[-1]
    assert work["images"] == 0 and work["tokens"] <= cost.generated_tokens + 1
    with pytest.raises(ConversationError, match="no answer"):
        session.load([Turn("What?")])
    with pytest.raises(ChatError, match="of 8 allowed"):
        session.load([Turn("What?", "This", tuple(session.open_images(pictures[:3]) * 3))])
    assert len(session.turns) == 3


def test_images_are_numbered_through_the_dialogue_and_read_once(session, pictures):
    list(session.ask("What?", pictures[0]))
    PIL.Image.new("RGB", (20, 20)).save(pictures[0])
    pictures[1].unlink()
    with pytest.raises(ImageError, match="picture 1"):
        session.ask("And?", pictures[1:2])
    list(session.ask("And?", pictures[2:4]))
    assert [image.name for image in session.images] == [str(pictures[number]) for number in (0, 2, 3)]
    assert session.images[0].open().size == (24, 20)


@pytest.mark.parametrize("taken", [0, 2])
def test_a_closed_answer_leaves_the_session_consistent(session, pictures, taken):
    list(session.ask("What?", pictures[:1]))
    answer = session.ask("Tell me more", pictures[1:2])
    said = "".join(next(answer) for _ in range(taken))
    answer.close()
    if taken:
        assert session.turns[-1].answer == said and session.statistics[-1].end == "interrupted"
    assert len(session.turns) == len(session.statistics) == (2 if taken else 1)
    expected = fresh_answer(session, "And?", pictures[2:3])
    assert "".join(session.ask("And?", pictures[2:3])) == expected


def test_a_new_question_ends_the_answer_before(session):
    answer = session.ask("What?")
    said = next(answer)
    assert "".join(session.ask("Why?")) == session.turns[1].answer
    assert session.turns[0].answer == said
    assert list(answer) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_was_said_and_a_failure_nothing(session, pictures, monkeypatch, error):
    list(session.ask("What?", pictures[:1]))
    choose, steps = TokenChooser.choose, []

    def fail_in_the_fifth(*args):
        steps.append(1)
        if len(steps) == 5:
            raise error
        return choose(*args)

    monkeypatch.setattr(TokenChooser, "choose", fail_in_the_fifth)
    with pytest.raises(error):
        list(session.ask("And?", pictures[1:2]))
    monkeypatch.undo()
    assert len(session.turns) == (2 if error is KeyboardInterrupt else 1)
    expected = fresh_answer(session, "Why?")
    assert "".join(session.ask("Why?")) == expected


def test_mistakes_leave_the_session_as_it_was(session, pictures, work):
    list(session.ask("What?", pictures[:3]))
    before = session.turns
    mistakes = [
        (ChatError, "9 images, of 8 allowed", "And?", pictures[3:9]),
        (ImageError, "no such image file", "And?", ["nowhere.png"]),
        (ConversationError, "empty", "  ", []),
        (ConversationError, "<image>", "Look: <image>", []),
        (ChatError, "no room", "many words " * 2000, []),
    ]
    for error, message, question, images in mistakes:
        with pytest.raises(error, match=message):
            session.ask(question, images)
    assert session.turns == before
    work.update(tokens=0, images=0)
    list(session.ask("Why?"))
    assert work["images"] == 0 and work["tokens"] < session.statistics[-1].prompt_tokens


def test_an_answer_ends_at_the_length_limits(model_and_processor):
    session = ChatSession(*model_and_processor, max_new_tokens=3)
    list(session.ask("What?"))
    assert session.statistics[-1].generated_tokens == 3 and session.statistics[-1].end == "length"
    prompt = session.statistics[-1].prompt_tokens
    session = ChatSession(*model_and_processor, max_new_tokens=30, max_seq_len=prompt + 2)
    list(session.ask("What?"))
    assert session.statistics[-1].generated_tokens == 2
    assert ChatSession(*model_and_processor, max_seq_len=10**6).max_seq_len == 2048  # the decoder's positions


@pytest.mark.parametrize(
    "spelled, recorded", [("", EMPTY_ANSWER), ("a <image> b", "a  b"), ("<ima<s>ge>", EMPTY_ANSWER)]
)
def test_any_answer_can_stand_in_the_dialogue(session, monkeypatch, spelled, recorded):
    tokenizer = session.processor.tokenizer
    letters = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in spelled.encode()]
    script = chain(letters, eos_token_ids(session.model, session.processor))
    monkeypatch.setattr(TokenChooser, "choose", lambda *args: next(script))
    list(session.ask("What?"))
    monkeypatch.undo()
    assert session.statistics[-1].end == "eos"
    assert session.turns[-1].answer.split() == recorded.split()
    list(session.ask("And?"))


def test_sampling_is_seeded_and_its_own(model_and_processor):
    def answers(seed: int) -> list[str]:
        sampling = Sampling(temperature=1.5, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=seed)
        session = ChatSession(*model_and_processor, max_new_tokens=12, sampling=sampling)
        return ["".join(session.ask(question)) for question in ("What?", "Why?")]

    first, state = answers(1), torch.get_rng_state()
    assert answers(1) == first != answers(2) and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(SamplingError, match="top_p"):
        Sampling(top_p=0)


def test_a_session_from_a_checkpoint_folder(checkpoint, session, pictures):
    loaded = ChatSession.from_pretrained(checkpoint, device_map="cpu", max_new_tokens=12, system="Be brief.")
    answer = "".join(loaded.ask("What?", pictures[:1]))
    assert loaded.conversation.system == "Be brief."
    assert answer and answer != "".join(session.ask("What?", pictures[:1]))


def test_dialogues_are_read_whole_where_the_image_kv_cache_is_deleted(
    model_and_processor, pictures, monkeypatch
):
    monkeypatch.setitem(sys.modules, "chat.image_kv.store", None)
    session = ChatSession(*model_and_processor, max_new_tokens=12)
    expected = fresh_answer(session, "What?", pictures[:2])
    assert "".join(session.ask("What?", pictures[:2])) == expected and session.image_store is None
