"""Decoders in 8 and 4 bits, on the CPU, by the flags that people give."""

import json
from io import StringIO
from pathlib import Path

import bitsandbytes
import pytest
from transformers import AutoTokenizer

from chat import chat
from chat.arguments import load_named_checkpoint
from tests.tiny import write_llama
from utils.model import build_visual_chat
from utils.model.checkpoint import save_full


@pytest.fixture(scope="module")
def wide_checkpoint(base_models, tmp_path_factory) -> Path:
    """Wide enough for bitsandbytes on the CPU, which takes 64 weights of a row together."""
    llama, folder = tmp_path_factory.mktemp("wide"), tmp_path_factory.mktemp("checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(base_models[0])
    sizes = dict(hidden_size=128, intermediate_size=256, num_key_value_heads=4, initializer_range=0.02)
    write_llama(llama, tokenizer, max_position_embeddings=2048, **sizes)
    save_full(*build_visual_chat(str(llama), str(base_models[1])), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, kind",
    [("--load_in_8bit", bitsandbytes.nn.Linear8bitLt), ("--load_in_4bit", bitsandbytes.nn.Linear4bit)],
)
def test_a_decoder_of_few_bits_answers(wide_checkpoint, pictures, monkeypatch, capsys, flag, kind):
    flags = ["--checkpoint_path", str(wide_checkpoint), "--device_map", "cpu", flag]
    model, _ = load_named_checkpoint(chat._parser().parse_args(flags), wide_checkpoint)
    assert isinstance(model.model.language_model.layers[0].mlp.up_proj, kind)
    assert not isinstance(model.lm_head, kind)
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        assert not any(isinstance(module, kind) for module in part.modules())
    asked = ["--image", str(pictures[0]), "--prompt", "What?", "Why?", "--json"]
    asked += ["--generation_length_per_round", "4"]
    monkeypatch.setattr("sys.stdin", StringIO())
    assert chat.main([*flags, *asked]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2 and answers[1]["encoded_images"] == 0
