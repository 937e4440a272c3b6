"""The decoder's positions limit a dialogue alike in training, chat, server and evaluation."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from transformers import LlamaConfig

from chat.generation.decoding import Sampling
from chat.server_setup import Limits
from chat.serving.app import build_app
from chat.serving.images import Sources
from chat.serving.service import Serving
from chat.session import ChatError, ChatSession
from eval.dialogues import EvalDialogue, EvalTurn
from eval.generation import DialogueRunner, GenerationSettings
from training.arguments import DataArguments
from training.datasets import bad_records, longest_conversation, make_rows, read_parts
from utils.conversation import Conversation, Turn, longest_dialogue

POSITIONS = 200
SHORT, LONG = "What is it?", "What is it? " * POSITIONS


@pytest.fixture
def few_positions(model_and_processor) -> Iterator[tuple]:
    """The tiny model with a decoder of so few positions."""
    model, processor = model_and_processor
    decoder = model.config.get_text_config()
    before, decoder.max_position_embeddings = decoder.max_position_embeddings, POSITIONS
    yield model, processor
    decoder.max_position_embeddings = before


def test_training_leaves_out_what_the_decoder_cannot_reach(
    few_positions, tmp_path: Path, tmp_path_factory, caplog
) -> None:
    model, processor = few_positions
    records = [
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}] * rounds}
        for question, answer, rounds in ((SHORT, "red", 1), (LONG, "red", 1), (SHORT, "red", 9))
    ]
    (tmp_path / "own.json").write_text(json.dumps(records))
    arguments = DataArguments(
        dataset_names=[str(tmp_path / "own.json")],
        data_train_split_ratio=1.0,
        data_cache_path=str(tmp_path_factory.mktemp("cache")),
    )
    part, _ = read_parts(arguments, 1, bad_records(arguments, tmp_path))
    with caplog.at_level(logging.WARNING):
        longest = longest_conversation(arguments, model.config)
    assert longest == POSITIONS
    assert "the decoder has 200 positions, fewer than --max_seq_len 4,096" in caplog.text
    whole = len(processor.encode(Conversation((Turn(SHORT, "red"),) * 9)).input_ids)
    assert whole > POSITIONS
    rows = make_rows(part, processor, arguments, 1, longest=longest)
    bad, short, cut = sorted((rows[number] for number in range(3)), key=lambda row: len(row.input_ids))
    assert "more than --max_seq_len 200" in bad.bad[0].reason and not (short.bad or cut.bad)
    assert POSITIONS * 0.7 < len(cut.input_ids) <= POSITIONS  # whole rounds were cut off
    packed = make_rows(part, processor, replace(arguments, packing=True), 1, longest=longest)
    assert max(int(packed[number].position_ids.max()) for number in range(len(packed))) < POSITIONS


def test_chat_and_server_refuse_it(few_positions) -> None:
    session = ChatSession(*few_positions, max_new_tokens=4)
    with pytest.raises(ChatError, match="within 200"):
        session.ask(LONG)
    assert "".join(session.ask(SHORT))
    serving = Serving("tiny", Limits(), sources=Sources(), sampling=Sampling(), max_new_tokens=4)
    with TestClient(build_app(ChatSession(*few_positions), serving)) as client:
        for question, status in ((LONG, 400), (SHORT, 200)):
            body = {"model": "tiny", "messages": [{"role": "user", "content": question}]}
            response = client.post("/v1/chat/completions", json=body)
            assert response.status_code == status, response.text
            assert status == 200 or "within 200" in response.json()["error"]["message"]


@pytest.mark.parametrize("keep_images", [True, False])
def test_evaluation_does_not_ask_it(few_positions, keep_images: bool) -> None:
    dialogues = [EvalDialogue(question, (EvalTurn(question),)) for question in (SHORT, LONG)]
    settings = GenerationSettings(max_new_tokens=4)
    answers = DialogueRunner(*few_positions, settings, keep_images=keep_images).run(dialogues)
    assert answers[0][0] and answers[1] == [None]


@pytest.mark.parametrize(
    ("rope", "reach"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 64),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, 256),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 128),
        (  # Qwen's: the positions are those before
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4},
            256,
        ),
        (  # others': the positions are those that are reached
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4},
            64,
        ),
    ],
)
def test_stretched_rotations_reach_farther(rope: dict, reach: int) -> None:
    config = LlamaConfig(max_position_embeddings=64, rope_parameters=rope)
    assert longest_dialogue(config, 10_000) == reach
    assert longest_dialogue(config, 60) == 60
