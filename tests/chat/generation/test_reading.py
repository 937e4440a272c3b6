"""Dialogues read over a store against the whole dialogue read at once: logits, and answers of random chats."""

import random
from pathlib import Path

import pytest
import torch

from chat.generation.reading import Prompt, Reading, WholeDialogues
from chat.image_kv.store import ImageStore
from chat.images import LoadedImage, open_image
from chat.session import ChatSession
from tests.chat.conftest import generated_answer
from utils.conversation import Conversation, Turn
from utils.model import VisualChatForConditionalGeneration, VisualChatProcessor

WORDS = ("What", "red", "circle", "how many", "squares are there", "both pictures", "where", "in image 2")


@pytest.fixture(scope="module")
def calm(build) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """The tiny model with weights of an ordinary size, so that logits are of the order of 1."""
    model, processor = build("mmca")
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.1 / parameter.std())
        model.lm_head.weight.mul_(0.1 / model.lm_head.weight.std())
    return model, processor


@torch.inference_mode()
def fresh_logits(model, processor, conversation: Conversation) -> torch.Tensor:
    encoded = processor.encode(conversation)
    ids = torch.from_numpy(encoded.input_ids)[None]
    return model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=torch.from_numpy(encoded.mm_token_type_ids)[None],
        pixel_values=encoded.pixel_values,
        logits_to_keep=1,
    ).logits[:, -1]


def random_turns(rng: random.Random, images: list[LoadedImage], count: int) -> tuple[Turn, ...]:
    """Turns with 0 to 3 images each, repeats among them, and questions of 1 to 12 pieces."""
    return tuple(
        Turn(
            " ".join(rng.choices(WORDS, k=rng.randint(1, 12))),
            rng.choice(WORDS),
            tuple(rng.choices(images, k=rng.choice([0, 0, 1, 2, 3]))),
        )
        for _ in range(count)
    )


@pytest.mark.parametrize("way", ["beside", "whole"])
def test_logits_equal_those_of_the_whole_dialogue_read_at_once(calm, pictures, way):
    """Also after cutting the dialogue back anywhere, and with other images at other places then."""
    model, processor = calm
    images = [open_image(picture) for picture in pictures]
    store = ImageStore(model, processor)
    reading: Reading = store.reading() if way == "beside" else WholeDialogues(model, processor)
    rng = random.Random(way)
    for _ in range(25):
        turns = random_turns(rng, images, rng.randint(1, 5))
        conversation = Conversation((*turns[:-1], Turn(turns[-1].question, None, turns[-1].images)))
        encoded = processor.encode(conversation, load_images=False)
        prompt = Prompt(encoded.input_ids, encoded.mm_token_type_ids == 1, conversation.images)
        reading.cut(prompt.is_image[:0])  # other images: nothing of the last dialogue can stay
        first = rng.randint(1, len(prompt.ids) - 1)
        while prompt.is_image[first - 1] or prompt.is_image[first]:
            first += 1  # a part of an image is never read
        reading.read([prompt.until(first)])
        assert reading.covered(prompt.is_image) == first
        found, _ = reading.read([prompt])
        expected = fresh_logits(model, processor, conversation)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        reading.cut(prompt.is_image[:first])
        torch.testing.assert_close(reading.read([prompt])[0], expected, atol=1e-5, rtol=0)


def fresh_answer(session: ChatSession, turns: tuple[Turn, ...], max_new_tokens: int) -> str:
    return generated_answer(session.model, session.processor, Conversation(turns), max_new_tokens)


def hold_a_conversation(seed: int, model_and_processor, store: ImageStore, pictures: list[Path]) -> int:
    """A few random acts: questions with new and repeated images, undo, and edits of earlier turns.

    Each answer must be that of the whole dialogue read afresh. Returns how many answers there were.
    """
    rng = random.Random(seed)
    session = ChatSession(*model_and_processor, max_new_tokens=6, image_store=store, max_images=24)
    images = [open_image(picture) for picture in pictures]
    asked = 0
    for _ in range(rng.randint(3, 6)):
        act = rng.choice(["ask", "ask", "ask", "undo", "edit"]) if session.turns else "ask"
        if act == "undo":
            session.undo()
            continue
        if act == "edit":  # one earlier turn is another; those behind it stand elsewhere
            turns = list(session.turns)
            turns[rng.randrange(len(turns))] = random_turns(rng, images, 1)[0]
            session.load(turns)
        (turn,) = random_turns(rng, images, 1)
        expected = fresh_answer(session, (*session.turns, Turn(turn.question, None, turn.images)), 6)
        assert "".join(session.ask(turn.question, turn.images)) == expected
        asked += 1
    return asked


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(100, 200), marks=pytest.mark.long)], ids=str)
def test_random_conversations_answer_as_if_read_afresh(model_and_processor, pictures, seeds):
    store = ImageStore(*model_and_processor)
    asked = sum(hold_a_conversation(seed, model_and_processor, store, pictures) for seed in seeds)
    assert asked > 2 * len(seeds)
    assert store.statistics.encoded_images <= len(pictures) < store.statistics.found
