"""One dialogue through the five entrances: what is learnt of it is what is asked, id for id."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from chat.generation.decoding import Sampling
from chat.page.page_session import AnswerSettings, PageSession, SharedEngine
from chat.server_setup import Limits
from chat.serving.engine import Engine
from chat.serving.images import ImageOpener, Sources
from chat.session import ChatSession
from chat.terminal.repl import Repl
from chat.terminal.screens import PlainScreen
from eval.dialogues import load_dialogues
from eval.generation import DialogueRunner, GenerationSettings
from tests.chat.conftest import base_models, build, model_and_processor, pictures  # noqa: F401
from tests.chat.serving.conftest import Server, assistant, data_url, serve, user  # noqa: F401
from utils.data import EncodedDataset, build_dataset
from utils.data.batching.batch import IGNORED_LABEL

ANSWER = "red\n\nand  blue"
QUESTIONS = (
    "What colour is the circle?",
    "first line\nsecond line\nwhat colour?",
    "  Which?\n\n- red\n\t- blue  (both)\n ",
    "of\r\nWindows",
    "compare image 1 with image 1 please",
    "¿Qué? 🐕 'a' \"b\" \\n C:\\x",
)
Ids = list[int]


@pytest.fixture
def asked(model_and_processor, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Ids]]:  # noqa: F811
    """The ids of every prompt that the processor encodes, in order."""
    _, processor = model_and_processor
    encode, prompts = type(processor).encode, []

    def spy(self, conversation, load_images=True):
        encoded = encode(self, conversation, load_images)
        if conversation.turns[-1].answer is None:
            prompts.append(encoded.input_ids.tolist())
        return encoded

    monkeypatch.setattr(type(processor), "encode", spy)
    yield prompts


def record(image: Path, system: str | None) -> dict:
    """A round for each question in own data of OpenAI's shape, the image in the first."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for number, question in enumerate(QUESTIONS):
        messages += [user(question, *([] if number else [str(image)])), assistant(ANSWER)]
    return {"messages": messages}


def learnt(tmp_path: Path, fields: dict, processor) -> list[Ids]:
    """What is learnt of a record up to each of its answers."""
    file = tmp_path / "own.json"
    file.write_text(json.dumps([fields]))
    encoded = EncodedDataset(build_dataset([str(file)], tmp_path), processor, max_seq_len=4096)[0]
    is_learnt = (encoded.labels != IGNORED_LABEL).tolist()
    starts = [at for at in range(1, len(is_learnt)) if is_learnt[at] and not is_learnt[at - 1]]
    return [encoded.input_ids[:start].tolist() for start in starts]


def terminal(parts, image: Path, system: str | None) -> None:
    session = ChatSession(*parts, max_new_tokens=1, system=system)
    talk = Repl(session, PlainScreen(io.StringIO(), io.StringIO()))
    talk.handle(f"/image '{image}'")
    for question in QUESTIONS:
        talk.handle(question)
        session.load([*session.turns[:-1], replace(session.turns[-1], answer=ANSWER)], system)


def page(parts, image: Path, system: str | None) -> None:
    session = ChatSession(*parts, max_new_tokens=1)
    engine = Engine(session)
    visitor = PageSession(SharedEngine(engine, ImageOpener(Limits(), Sources()), session))
    try:
        for question in QUESTIONS:
            shown = () if visitor.turns else visitor.open_files([str(image)])
            list(visitor.ask(question, shown, AnswerSettings(Sampling(), 1, system)))
            visitor.turns = (*visitor.turns[:-1], replace(visitor.turns[-1], answer=ANSWER))
    finally:
        engine.close()


def evaluation(parts, image: Path, tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    turns = [[question, "" if number else f"'{image}'", ANSWER] for number, question in enumerate(QUESTIONS)]
    file.write_text(json.dumps({"one": turns}))
    settings = GenerationSettings(max_new_tokens=1, history="reference")
    DialogueRunner(*parts, settings).run(load_dialogues(file))


@pytest.mark.parametrize("system, tiles", [(None, 1), ("", 1), ("Be brief.\nAlways.", 1), (None, 4)], ids=str)
def test_what_is_learnt_is_what_every_entrance_asks(
    model_and_processor,  # noqa: F811
    pictures: list[Path],  # noqa: F811
    server: Server,
    asked: list[Ids],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str | None,
    tiles: int,
) -> None:
    _, processor = model_and_processor
    monkeypatch.setattr(processor, "tiles", tiles)
    image, fields = pictures[0], record(pictures[0], system)
    if tiles > 1:  # the encoder takes 16 x 16
        PIL.Image.effect_noise((40, 40), 60).save(image)
    expected = learnt(tmp_path, fields, processor)
    assert len(expected) == len(QUESTIONS)
    views = 1 if tiles == 1 else 1 + 4
    assert expected[0].count(processor.image_token_id) == views * processor.image_seq_length

    terminal(model_and_processor, image, system)
    assert asked == expected

    asked.clear()
    page(model_and_processor, image, system)
    assert asked == expected

    asked.clear()
    messages = fields["messages"]
    first = next(message for message in messages if message["role"] == "user")
    first["content"][0]["image_url"]["url"] = data_url(image.read_bytes())
    for end, message in enumerate(messages, start=1):
        if message["role"] == "user":
            server.text(messages=messages[:end], max_tokens=1)
    assert asked == expected

    if system is None:  # an evaluation has none of its own
        asked.clear()
        evaluation(model_and_processor, image, tmp_path)
        assert asked == expected


@pytest.fixture(scope="module")
def server(serve) -> Iterator:  # noqa: F811
    with serve() as server:
        yield server
