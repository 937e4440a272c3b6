"""Conversations are checked where they are made; images open when asked, and say what is wrong with them."""

import PIL.Image
import pytest

from utils.conversation import Conversation, ConversationError, Image, Turn


def noise() -> PIL.Image.Image:
    return PIL.Image.effect_noise((64, 64), 50).convert("RGB")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "no turn"),
        ((Turn(" \n", "a"),), "question of turn 1 is empty"),
        ((Turn("q", "a"), Turn("q", "  ")), "answer of turn 2 is empty"),
        ((Turn("q"), Turn("q", "a")), "turn 1 has no answer"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused_by_name(turns: tuple[Turn, ...], message: str) -> None:
    with pytest.raises(ConversationError, match=f"set.json#3: .*{message}"):
        Conversation(turns, source="set.json#3")


def test_the_prompt_of_an_answer_ends_with_its_question() -> None:
    dialogue = Conversation((Turn("one", "1"), Turn("two", "2"), Turn("three", "3")), "s", "system")
    assert dialogue.until_answer(1) == Conversation((Turn("one", "1"), Turn("two")), "s", "system")


def test_messages_are_those_of_chat_templates() -> None:
    picture = noise()
    dialogue = Conversation((Turn("one", "1", (Image(picture),)), Turn("two")), system="Be brief.")
    assert dialogue.messages(load_images=False) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]
    assert dialogue.messages()[1]["content"][0]["image"].tobytes() == picture.tobytes()
