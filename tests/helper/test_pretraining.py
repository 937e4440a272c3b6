"""What the miniature decoder is shown in its pretraining, and how it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helper.miniature.lessons import FULL_DIALOGUES, Lesson
from helper.miniature.muon import Muon, orthogonalised
from helper.miniature.probes import Probes, _index, _questions
from helper.miniature.scenes import COLORS, SHAPES
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
    batch = drawn(tokenizer)
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
    batch, embedding = drawn(tokenizer), torch.nn.Embedding(len(tokenizer), 256)
    words = embedding.weight[tokenizer.convert_tokens_to_ids(["▁red", "▁circle", "▁northwest"])].sum(0)
    near = [torch.cosine_similarity(batch.embedded(embedding)[0, 6], words, dim=0) for _ in range(50)]
    assert 0.6 < min(near) < 0.85 and 0.95 < max(near) < 1  # up to as loud as the words
    embedded = batch.embedded(embedding)[0]
    torch.testing.assert_close(embedded[5:10].square().mean(1), torch.ones(5), atol=1e-3, rtol=0)
    assert not torch.equal(embedded[7], embedded[8])  # an empty quarter is never twice the same
    torch.testing.assert_close(embedded[1], embedding.weight[batch.ids[0, 1]])


def test_it_is_read_as_pictures_are(tokenizer) -> None:
    """A quarter sees itself alone, and words see all that is before them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    batch = drawn(tokenizer)
    heard = {}
    decoder.model.layers[0].register_forward_pre_hook(lambda layer, given: heard.update(tokens=given[0]))
    for asks, hidden in enumerate(batch.read_by(decoder)[0][0]):
        [gradient] = torch.autograd.grad(hidden.sum(), heard["tokens"], retain_graph=True)
        seen = gradient[0].abs().sum(1).nonzero()[:, 0].tolist()
        assert seen == ([asks] if 5 <= asks < 10 else list(range(asks + 1)))


def test_a_share_of_the_texts_is_in_sums(tokenizer) -> None:
    lesson = replace(FULL_DIALOGUES, summed=0.5)
    batch = draw_batch(np.random.default_rng(0), tokenizer, lesson)
    share = (batch.passage >= 0).any(1).float().mean()
    assert 0.2 < share < 0.8


class Said(torch.nn.Module):
    """In the place of a probe: keeps what it is asked about, and gives logits for it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.hidden = hidden
        return torch.zeros(*hidden.shape[:-1], self.classes)


def test_probes_ask_the_words_behind_a_picture_and_before_an_answer(tokenizer) -> None:
    """The places are told apart by hidden states that are nothing but their place, in every layer another sign."""
    text = (
        "<s> image 1: one object: red circle northwest. image 2: two objects: blue square northeast,"
        " red cross southeast. which blue square? image 2. many?"
    )
    answer, captions = text.index(" image 2. many"), ("one object", "two objects")
    spans = [(text.index(each), text.index(".", text.index(each))) for each in captions]
    written = WrittenText(text, ((answer, answer + 9, "which"),), tuple(spans))
    lesson = Lesson("two", lambda rng, held_out: written, steps=1, mastered=1.0, tokens=1)
    batch = draw_batch(np.random.default_rng(0), tokenizer, lesson)
    probes = Probes(tokenizer, 8, layer=2)
    for name in ("color", "shape", "place", "number", "kind", "answer"):
        setattr(probes, name, Said(getattr(probes, name).out_features))
    probes.asked = torch.nn.ModuleList(Said(probe.out_features) for probe in probes.asked)
    places = torch.arange(batch.ids.shape[1])[None, :, None]
    wave = torch.cat([torch.cos(places * rate) for rate in (0.11, 0.13, 0.17, 0.19)], -1)
    states = [torch.cat([wave, torch.full_like(wave, layer)], -1) for layer in range(6)]
    loss = probes(batch, states)
    all_probes = [probe for probe in probes.modules() if isinstance(probe, Said)]
    expected = sum(np.log(probe.classes) for probe in all_probes)
    assert loss.item() == pytest.approx(expected, rel=1e-4)

    def asked(hidden: torch.Tensor, layer: int) -> list[int]:
        normed = torch.nn.functional.layer_norm(states[layer][0], (8,))
        return [int((normed - each).abs().sum(-1).argmin()) for each in hidden.reshape(-1, 8)]

    ends = [
        place for place in range(places.numel() - 1) if batch.passage[0, place] > batch.passage[0, place + 1]
    ]
    behind = [end + step for end in ends for step in (1, 2, 3, 4)]
    assert (
        asked(probes.color.hidden, 2)
        == asked(probes.shape.hidden, 2)
        == asked(probes.place.hidden, 2)
        == behind
    )
    assert asked(probes.number.hidden, 3) == behind
    [before] = asked(probes.answer.hidden, 4)
    assert [before] == asked(probes.kind.hidden, 3) == asked(probes.asked[0].hidden, 3)
    assert tokenizer.convert_ids_to_tokens(batch.ids[0, before : before + 4].tolist()) == [
        "?",
        "▁image",
        "▁",
        "2",
    ]


def test_probes_know_what_is_asked(tokenizer) -> None:
    """The words since the last answer or picture; in texts without pictures they ask nothing."""
    rng = np.random.default_rng(0)
    batch = draw_batch(rng, tokenizer, replace(FULL_DIALOGUES, tokens=2000))
    rows, places, words = _questions(batch)
    assert len(rows) == sum(map(len, batch.kinds))
    for row, place, said in zip(rows, places, words, strict=True):
        assert batch.answer[row, place] < 0 <= batch.answer[row, place + 1]
        asked = tokenizer.decode([token for token in said.flip(0).tolist() if token >= 0])
        assert asked.strip().startswith("### Question:") and asked.endswith("### Answer:")
    assert not len(_questions(draw_batch(rng, tokenizer, replace(FULL_DIALOGUES, summed=0.0)))[0])


def test_probes_know_what_a_quarter_shows(tokenizer) -> None:
    probes = Probes(tokenizer, 8, layer=0)
    said = torch.tensor(
        [
            [
                [*tokenizer.convert_tokens_to_ids(["▁green", "▁cross"]), -1],
                [-1, -1, -1],
            ]
        ]
    )
    assert [list(COLORS)[place] for place in _index(said, probes.colors)[0, :1]] == ["green"]
    assert [SHAPES[place] for place in _index(said, probes.shapes)[0, :1]] == ["cross"]
    assert _index(said, probes.colors)[0, 1] == len(COLORS) and _index(said, probes.shapes)[0, 1] == len(
        SHAPES
    )


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
