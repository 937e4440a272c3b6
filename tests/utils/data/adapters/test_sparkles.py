"""SparklesDialogue, worked out by hand: names for ids, one manner a dialogue, and what is left out."""

from collections.abc import Callable

import pytest

from utils.conversation import Conversation, ConversationError
from utils.data.adapters.sparkles import MANNERS, sparkles_dialogue
from utils.data.spec import LeftOut, RawRecord

Raw = Callable[..., RawRecord]
TAG = "<Img><ImageHere></Img>"
A, FIRST = 0, 2  # places in MANNERS


def user(content: str, *image_ids: object) -> dict:
    return {"role": "user", "content": content, "images": [{"image_id": each} for each in image_ids]}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


BOATS = [
    user(f"Which is older,\nthe one in IMAGE#14{TAG} or in IMAGE#1417{TAG}?", 14, 1417),
    assistant("IMAGE#1417 shows the older one.\nIMAGE#14 shows NASA's. IMAGE#14, e.g. here: it's new."),
    user(f"And IMAGE#9{TAG}, vs. IMAGE#14?", 9),
    assistant("C'est l'été à IMAGE#9! IMAGE#1417's is not."),
]


@pytest.fixture
def all_pictures(write_picture: Callable) -> None:
    for name in ("14.jpg", "1417.jpg", "9.jpg", "141.jpg"):
        write_picture(name)


@pytest.fixture
def by_manner(raw: Raw, all_pictures: None) -> Callable[[list[dict], int], Conversation]:
    """The conversation of a dialogue, in the manner asked for: a seed is looked for that draws it."""

    def make(dialogue: list[dict], manner: int) -> Conversation:
        for seed in range(60):
            conversation = sparkles_dialogue(raw({"dialogue": dialogue}, seed))
            assert isinstance(conversation, Conversation), conversation
            text = " ".join(f"{turn.question} {turn.answer}" for turn in conversation.turns)
            if MANNERS[manner][0] in text or MANNERS[manner][0].capitalize() in text:
                return conversation
        raise AssertionError("no seed draws this manner")

    return make


@pytest.mark.parametrize("order", [("14", "141", "1417"), ("1417", "141", "14"), (141, 1417, 14)])
def test_ids_that_begin_other_ids(by_manner: Callable, order: tuple) -> None:
    said = " ".join(f"IMAGE#{each}," for each in order)
    conversation = by_manner([user(f"See {said} what?", *order), assistant("IMAGE#1417.")], A)
    assert conversation.turns[0].question == "See image a, image b, image c, what?"
    place = "abc"[[str(each) for each in order].index("1417")]
    assert conversation.turns[0].answer == f"Image {place}."


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        (BOATS[:3], "do not take turns"),
        (BOATS[1:3], "do not take turns"),
        ([BOATS[0], BOATS[2], BOATS[1], BOATS[3]], "do not take turns"),
        ([], "do not take turns"),
        ([user("IMAGE#77?", 77), assistant("Yes.")], "image file of it is not there"),
        ([user("Well?", "7" * 5000), assistant("Yes.")], "image file of it is not there"),
        ([user("Well?", "\0"), assistant("Yes.")], "image file of it is not there"),
        ([user("IMAGE#14?", 14), assistant("No, IMAGE#141.")], "speaks of an image that it never shows"),
        ([user("Well?", *["14"] * 27), assistant("Yes.")], "more than 26 images"),
    ],
)
def test_what_the_recipe_leaves_out(raw: Raw, all_pictures: None, dialogue: list, reason: str) -> None:
    left_out = sparkles_dialogue(raw({"dialogue": dialogue}))
    assert isinstance(left_out, LeftOut) and reason in left_out.reason


def test_an_image_in_an_answer_is_named(raw: Raw, all_pictures: None) -> None:
    dialogue = [user("Well?"), assistant("See.") | {"images": [{"image_id": 14}]}]
    with pytest.raises(ConversationError, match=r"set/file\.json#7: an answer brings an image"):
        sparkles_dialogue(raw({"dialogue": dialogue}))
