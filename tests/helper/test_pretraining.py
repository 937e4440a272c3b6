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


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "assets" / "tiny_llama")


def drawn(tokenizer: PreTrainedTokenizerFast, **shares: float):
    lesson = Lesson("spoken", lambda rng, held_out: SPOKEN, steps=1, mastered=1.0, tokens=1, **shares)
    return draw_batch(np.random.default_rng(0), tokenizer, lesson)


def test_a_caption_becomes_what_an_encoder_makes_of_a_picture(tokenizer) -> None:
    batch = drawn(tokenizer, summed=1.0)
    said = [
        tokenizer.convert_ids_to_tokens([each for each in (token, *more) if each >= 0])
        for token, more in zip(batch.ids[0].tolist(), batch.more[0].tolist(), strict=True)
    ]
    assert said[5:10] == [
        ["▁two", "▁objects"],
        ["▁red", "▁circle", "▁northwest"],
        [],
        [],
        ["▁blue", "▁square", "▁southeast"],
    ]
    assert [place for place, passage in enumerate(batch.passage[0]) if passage >= 0] == [5, 6, 7, 8, 9]
    assert [said[place] for place in (batch.answer[0] >= 0).nonzero()[:, 0]] == [["▁circle"], ["."]]


def test_what_stands_for_a_picture_is_near_its_words_and_as_loud_as_a_projection(tokenizer) -> None:
    torch.manual_seed(0)
    batch, embedding = drawn(tokenizer, summed=1.0), torch.nn.Embedding(len(tokenizer), 256)
    words = embedding.weight[tokenizer.convert_tokens_to_ids(["▁red", "▁circle", "▁northwest"])].sum(0)
    near = [torch.cosine_similarity(batch.embedded(embedding)[0, 6], words, dim=0) for _ in range(50)]
    assert 0.4 < min(near) < 0.7 and 0.95 < max(near) < 1  # up to one and a half times as loud as the words
    embedded = batch.embedded(embedding)[0]
    torch.testing.assert_close(embedded[5:10].square().mean(1), torch.ones(5), atol=1e-3, rtol=0)
    assert not torch.equal(embedded[7], embedded[8])  # an empty quarter is never twice the same
    torch.testing.assert_close(embedded[1], embedding.weight[batch.ids[0, 1]])


def test_it_is_read_as_pictures_are(tokenizer) -> None:
    """A quarter sees itself alone, and words see all that is before them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    batch = drawn(tokenizer, summed=1.0)
    heard = {}
    decoder.model.layers[0].register_forward_pre_hook(lambda layer, given: heard.update(tokens=given[0]))
    for asks, hidden in enumerate(batch.read_by(decoder)[0]):
        [gradient] = torch.autograd.grad(hidden.sum(), heard["tokens"], retain_graph=True)
        seen = gradient[0].abs().sum(1).nonzero()[:, 0].tolist()
        assert seen == ([asks] if 5 <= asks < 10 else list(range(asks + 1)))


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
