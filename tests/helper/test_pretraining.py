"""What the miniature decoder is shown in its pretraining, and how it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helper.miniature.lessons import IN_WORDS, Lesson
from helper.miniature.muon import Muon, orthogonalised
from helper.miniature.text_batches import draw_batch
from helper.miniature.words import WrittenText

TEXT = "<s> image 1: two objects: red circle northwest, blue square southeast. red? circle."
SPOKEN = WrittenText(TEXT, ((TEXT.index(" circle."), len(TEXT), "shape"),), ((12, TEXT.index(". red")),))
CAPTION = range(5, 15)  # its tokens: two objects : red circle northwest , blue square southeast


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "assets" / "tiny_llama")


def drawn(tokenizer: PreTrainedTokenizerFast, **shares: float):
    lesson = Lesson("spoken", lambda rng, held_out: SPOKEN, steps=1, mastered=1.0, tokens=1, **shares)
    return draw_batch(np.random.default_rng(0), tokenizer, lesson)


def test_words_see_all_that_is_before_them(tokenizer) -> None:
    assert drawn(tokenizer).visible() is None  # plain causal attention


def test_captions_apart_see_nothing_before_them(tokenizer) -> None:
    visible = drawn(tokenizer, apart=1.0).visible()[0, 0]
    for asks, row in enumerate(visible.tolist()):
        first = CAPTION.start if asks in CAPTION else 0
        assert [place for place, seen in enumerate(row) if seen] == list(range(first, asks + 1))


def test_a_thing_becomes_one_token(tokenizer) -> None:
    batch = drawn(tokenizer, summed=1.0)
    said = [
        tokenizer.convert_ids_to_tokens([token, *(other for other in more if other >= 0)])
        for token, more in zip(batch.ids[0].tolist(), batch.more[0].tolist(), strict=True)
    ]
    assert said[5:8] == [
        ["▁two", "▁objects"],
        ["▁red", "▁circle", "▁northwest"],
        ["▁blue", "▁square", "▁southeast"],
    ]
    assert [place for place, passage in enumerate(batch.passage[0]) if passage >= 0] == [5, 6, 7]
    assert [said[place] for place in (batch.answer[0] >= 0).nonzero()[:, 0]] == [["▁circle"], ["."]]

    embedding = torch.nn.Embedding(len(tokenizer), 4)
    embedded = batch.embedded(embedding)[0]
    words = tokenizer.convert_tokens_to_ids(["▁two", "▁objects"])
    torch.testing.assert_close(embedded[5], embedding.weight[words].sum(0) / 2**0.5)
    torch.testing.assert_close(embedded[1], embedding.weight[batch.ids[0, 1]])


def test_things_are_read_as_pictures_are(tokenizer) -> None:
    """A thing sees itself alone, and words see all that is before them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    batch = drawn(tokenizer, summed=1.0)
    heard = {}
    decoder.get_input_embeddings().register_forward_hook(lambda module, inputs, out: heard.update(words=out))
    for asks, hidden in enumerate(batch.read_by(decoder)[0]):
        [gradient] = torch.autograd.grad(hidden.sum(), heard["words"], retain_graph=True)
        seen = gradient[0].abs().sum((1, 2)).nonzero()[:, 0].tolist()
        assert seen == ([asks] if 5 <= asks < 8 else list(range(asks + 1)))
    drawn(tokenizer).read_by(decoder)
    assert decoder.config._attn_implementation == "sdpa"


def test_a_lesson_reads_captions_in_one_way(tokenizer) -> None:
    with pytest.raises(ValueError, match="'spoken': a batch is read in one way"):
        drawn(tokenizer, apart=0.5, summed=0.5)


def test_a_share_of_the_texts_is_in_sums(tokenizer) -> None:
    lesson = replace(IN_WORDS, summed=0.5, tokens=8000)
    batch = draw_batch(np.random.default_rng(0), tokenizer, lesson)
    share = (batch.passage >= 0).any(1).float().mean()
    assert 0.2 < share < 0.8


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (16, 40)])
def test_muon_steps_as_torchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(tensor) for tensor in torch.randn(1, *shape).repeat(2, 1, 1))
    optimizers = Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)
    for _ in range(3):
        gradient = torch.randn(shape)
        for matrix, optimizer in zip((ours, theirs), optimizers, strict=True):
            matrix.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)  # torch's computes in bfloat16


def test_orthogonalised_matrices_keep_their_directions() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(20, 12)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonalised(matrix) @ right.T
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-4
    assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3
