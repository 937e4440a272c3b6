"""Answers given together, joining and leaving between steps, against each prompt generated alone by transformers."""

import random
from pathlib import Path

import pytest
import torch

from chat.generation import Answer, Generator, Prompt, Request, Sampling
from chat.image_kv.store import ImageStore
from chat.images import LoadedImage, open_image
from tests.chat.conftest import generated_answer
from utils.conversation import Conversation, Turn
from utils.model import build_visual_chat


def conversations(count: int, pictures: list[Path], seed: int) -> list[Conversation]:
    """Dialogues of one to three rounds with up to three images a question, several of which start alike."""
    rng = random.Random(seed)
    images = [open_image(picture) for picture in pictures[:4]]

    def turn(answer: str | None) -> Turn:
        asked = " ".join(
            rng.choices(["What", "red", "how many squares", "and why", "compare"], k=rng.randint(1, 9))
        )
        return Turn(asked, answer, tuple(rng.choices(images, k=rng.choice([0, 0, 1, 2, 3]))))

    return [
        Conversation((*(turn("red") for _ in range(rng.randint(0, 2))), turn(None))) for _ in range(count)
    ]


def prompt_of(processor, conversation: Conversation) -> Prompt:
    encoded = processor.encode(conversation, load_images=False)
    images: tuple[LoadedImage, ...] = conversation.images
    return Prompt(encoded.input_ids, encoded.mm_token_type_ids == 1, images)


def alone(model, processor, conversation: Conversation, room: int) -> str:
    """What transformers generates for the whole prompt."""
    return generated_answer(model, processor, conversation, room, suppress_tokens=processor.placeholder_ids)


@pytest.fixture(
    params=[
        *("mmca, image store", "mmca, image store, gate", "mmca, image store, summaries"),
        *("mmca", "mmca, whole, summaries", "cross", "causal"),
    ]
)
def generator(request, build, base_models) -> Generator:
    attention, *more = request.param.split(", ")
    if "summaries" in more:
        torch.manual_seed(1)
        parts = build_visual_chat(*map(str, base_models), image_layers="none", image_summary="mean")
        parts[0].eval()
    elif "gate" in more:
        torch.manual_seed(1)
        parts = build_visual_chat(*map(str, base_models), image_layers="no_mlp", image_gate="head")
        torch.nn.init.normal_(next(parts[0].model.image_gate.parameters()))
    else:
        parts = build(attention)
    return Generator(*parts, ImageStore(*parts) if "image store" in more else None, remembered=3)


def test_answers_equal_those_given_alone_whenever_they_join_and_leave(generator, pictures):
    """Up to five at a time, now one joins and now three, some are stopped half way, the others end when they end."""
    model, processor = generator._model, generator._processor
    asked = [(each, 1 + 2 * (number % 4)) for number, each in enumerate(conversations(16, pictures, seed=1))]
    greedy = Sampling()
    rng = random.Random(2)
    waiting, given, most = list(asked), [], 0
    while waiting or generator.answering:
        if waiting and generator.answering < 4:
            some = [waiting.pop() for _ in range(min(len(waiting), rng.choice([1, 1, 3])))]
            requests = [
                Request(prompt_of(processor, each), room, generator.chooser(greedy)) for each, room in some
            ]
            given += zip(some, generator.start(requests), strict=True)
        most = max(most, generator.answering)
        generator.step()
        if rng.random() < 0.15:
            generator.stop(rng.choice(given)[1])
    assert most > 3 and len(given) == len(asked)
    ends = [answer.end for _, answer in given]
    assert ends.count("length") > 8 and "interrupted" in ends
    for (conversation, room), answer in given:
        expected = alone(model, processor, conversation, room)
        assert answer.text == expected or (answer.end == "interrupted" and expected.startswith(answer.text))


def test_draws_depend_on_their_own_seed_alone(generator, pictures):
    prompts = [prompt_of(generator._processor, each) for each in conversations(6, pictures, seed=3)]

    def requests() -> list[Request]:
        return [
            Request(prompt, 5, generator.chooser(Sampling(temperature=1.5, top_p=0.9, seed=number)))
            for number, prompt in enumerate(prompts)
        ]

    together = generator.answers(requests())
    assert together == [generator.answers([each])[0] for each in requests()]
    assert len(set(together)) > 4


def test_dialogues_that_are_remembered_go_on_from_there_together(generator, pictures):
    """Three dialogues side by side, round by round; each round reads what is new only."""
    processor, images = generator._processor, [open_image(picture) for picture in pictures[:3]]
    turns = [(Turn(f"What {number}?", None, (image,)),) for number, image in enumerate(images)]
    for number in range(3):
        answers: list[Answer] = []
        for each in turns:
            prompt = prompt_of(processor, Conversation(each))
            answers += generator.start([Request(prompt, 4, generator.chooser(Sampling()))])
        while generator.answering:
            generator.step()
        for place, (each, answer) in enumerate(zip(turns, answers, strict=True)):
            cost = answer.statistics
            assert answer.text == alone(generator._model, processor, Conversation(each), 4)
            if number:
                assert cost.encoded_images == 0 and cost.computed_tokens < cost.prompt_tokens / 2
            turns[place] = (*each[:-1], Turn(each[-1].question, "red", each[-1].images), Turn("And?"))


def test_a_step_that_fails_may_be_repeated(generator, pictures, monkeypatch):
    model, processor = generator._model, generator._processor
    asked = conversations(3, pictures, seed=4)
    answers = generator.start(
        [Request(prompt_of(processor, each), 4, generator.chooser(Sampling())) for each in asked]
    )
    layer = model.model.language_model.layers[1]

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", fail)
        with pytest.raises(RuntimeError):
            generator.step()
    while generator.answering:
        generator.step()
    assert [answer.text for answer in answers] == [alone(model, processor, each, 4) for each in asked]
