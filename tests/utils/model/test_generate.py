"""Every way of transformers' generate gives what plain greedy decoding gives, under each attention and way of images.

The plain answer is worked out here without `generate`: the whole text through `forward` again for every token.
"""

import copy

import pytest
import torch
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from utils.model import build_visual_chat

pytestmark = pytest.mark.integration

PATHS = (
    ("mmca", "none", "full", "none"),
    ("mmca", "head", "none", "none"),
    ("mmca", "head", "none", "mean"),
    ("cross", "none", "full", "none"),
    ("cross", "none", "no_mlp", "none"),
    ("causal", "none", "full", "none"),
    ("causal", "none", "full", "mean"),
)
"""Attention, with or without an image gate, what images go through, and what stands behind them."""
NEW = 6
CUTS_FEATURES = hasattr(GenerationMixin, "_supports_mm_encoder_outputs")  # from transformers 5.24 on


@pytest.fixture(scope="module", params=PATHS)
def model(request, folders):
    torch.manual_seed(0)
    attention, gate, layers, summary = request.param
    model, _ = build_visual_chat(
        *folders, attention=attention, image_gate=gate, image_layers=layers, image_summary=summary
    )
    for number, factors in enumerate(model.model.image_gate.parameters() if gate == "head" else ()):
        factors.data = torch.tensor([0.4, -0.3, 0.0, 1.2]) * (number + 1)
    model.generation_config.suppress_tokens += [model.generation_config.eos_token_id]
    model.generation_config.eos_token_id = None
    return model.eval()


def pixels(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


def image_ids(model) -> list[int]:
    """What stands for an image."""
    config = model.config
    summary = config.image_summary_token_id
    return [config.image_token_id] * config.image_seq_length + ([] if summary is None else [summary])


def prompt(model, *more: int) -> dict[str, torch.Tensor]:
    """Two images; words repeat, so that a look-up in the prompt finds something to draft."""
    image = image_ids(model)
    ids = torch.tensor([[1, 20, 21, *image, 22, 23, 20, 21, *image, 24, 20, 21, *more]])
    kinds = (ids == model.config.image_token_id).long()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": kinds,
        "pixel_values": pixels(2),
    }


@torch.no_grad()
def greedy(model, inputs: dict[str, torch.Tensor], new: int = NEW) -> list[int]:
    """One row without a cache, a token at a time."""
    ids = inputs["input_ids"]
    for _ in range(new):
        logits = model(input_ids=ids, pixel_values=inputs.get("pixel_values"), use_cache=False).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[0, -new:].tolist()


def several_rows(model) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Rows of two images, one and none, padded on the left; and each row alone."""
    two = prompt(model)
    rows = [two["input_ids"][0].tolist(), [1, *image_ids(model), 25, 26], [1, 27, 28]]
    length = len(rows[0])
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    together = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
        "pixel_values": torch.cat([two["pixel_values"], pixels(1)]),
    }
    one, none = ({"input_ids": torch.tensor([row])} for row in rows[1:])
    return together, [two, one | {"pixel_values": pixels(1)}, none]


def embedded(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}


WAYS = {
    "dynamic cache": lambda model, inputs: {},
    "static cache": lambda model, inputs: {"cache_implementation": "static"},
    "no cache": lambda model, inputs: {"use_cache": False},
    "prompt lookup": lambda model, inputs: {"prompt_lookup_num_tokens": 3},
    "the model drafts for itself": lambda model, inputs: {"assistant_model": copy.deepcopy(model)},
    "embeddings beside ids": embedded,
    "embeddings alone": lambda model, inputs: {**embedded(model, inputs), "input_ids": None},
    "without kinds": lambda model, inputs: {"mm_token_type_ids": None},
    "chunks, static cache": lambda model, inputs: {"cache_implementation": "static", "prefill_chunk_size": 5},
    "chunks, drafts": lambda model, inputs: {
        "assistant_model": copy.deepcopy(model),
        "prefill_chunk_size": 5,
    },
    "chunks, embeddings beside ids": lambda model, inputs: (
        embedded(model, inputs) | {"prefill_chunk_size": 5}
    ),
    "chunks, embeddings alone": lambda model, inputs: (
        embedded(model, inputs) | {"input_ids": None, "prefill_chunk_size": 5}
    ),
    "chunks, without kinds": lambda model, inputs: {"mm_token_type_ids": None, "prefill_chunk_size": 5},
    "features in place of pixels": lambda model, inputs: {
        "pixel_values": None,
        "mm_encoder_outputs": {"image": model.get_image_features(inputs["pixel_values"])},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_generating_is_greedy_decoding(model, way):
    inputs = prompt(model)
    given = {**inputs, **WAYS[way](model, inputs)}
    given = {name: value for name, value in given.items() if value is not None}
    found = model.generate(**given, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist()
    assert found == greedy(model, inputs)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("chunk", [1, 5, 8, 10, 17])
def test_a_prefill_in_chunks_is_greedy_decoding(model, chunk, rows):
    """Chunks that end within an image (positions 3 to 7 and 12 to 16), right after one, and between two."""
    together, alone = several_rows(model)
    inputs, alone = (together, alone) if rows == 3 else (alone[0], alone[:1])
    lengths = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    found = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, prefill_chunk_size=chunk)
    handle.remove()
    assert found[:, -NEW:].tolist() == [greedy(model, each) for each in alone]
    length = inputs["input_ids"].shape[1]
    if model.config.image_summary_token_id is not None:  # whole images are needed for their means
        assert lengths == [length] + [1] * (NEW - 1)
    elif CUTS_FEATURES:
        whole, rest = divmod(length, chunk)
        assert lengths == [chunk] * whole + [rest] * bool(rest) + [1] * (NEW - 1)


@torch.no_grad()
def test_encoded_images_serve_in_place_of_pixels(model):
    """As `get_image_features` returns them, as a tensor, a list of images, and rows."""
    inputs = prompt(model)
    wanted = model(**inputs)
    features = model.get_image_features(inputs.pop("pixel_values")).pooler_output
    for form in (features, list(features), tuple(features.split(1)), features.flatten(0, 1)):
        given = {"image": BaseModelOutputWithPooling(pooler_output=form)}
        found = model(**inputs, mm_encoder_outputs=given)
        torch.testing.assert_close(found.logits, wanted.logits)
        torch.testing.assert_close(found.image_hidden_states.flatten(0, 1), features.flatten(0, 1))
    with pytest.raises(ValueError, match="pass either pixel_values or mm_encoder_outputs"):
        model(**inputs, pixel_values=pixels(2), mm_encoder_outputs=given)
    with pytest.raises(ValueError, match="10 image tokens, but 5 image features"):
        model(**inputs, mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features[:1])})


@pytest.mark.parametrize("images", ["of the whole text", "of the new text"])
@pytest.mark.parametrize("kinds", ["of the whole text", "of the first text", None])
@pytest.mark.parametrize("chunk", [None, 3])
def test_a_returned_cache_goes_on(model, images, kinds, chunk):
    """A second question with an image of its own, over the cache of the first answer."""
    first = prompt(model)
    answer = model.generate(**first, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    cache = answer.cache if "cache" in answer else answer.past_key_values
    image = image_ids(model)
    ids = torch.cat([answer.sequences, torch.tensor([[*image, 25, 26]])], dim=1)
    whole = {"input_ids": ids, "pixel_values": torch.cat([first["pixel_values"], pixels(1)])}
    wanted = greedy(model, whole)

    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["pixel_values"] = whole["pixel_values"] if images == "of the whole text" else pixels(1)
    if kinds == "of the first text":
        given["mm_token_type_ids"] = first["mm_token_type_ids"]
    elif kinds is not None:
        given["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    name = "cache" if "cache" in answer else "past_key_values"
    given |= {"max_new_tokens": NEW, "do_sample": False, "prefill_chunk_size": chunk}
    found = model.generate(**given, **{name: cache})
    assert found[0, -NEW:].tolist() == wanted


@pytest.mark.parametrize("chunk", [None, 3])
def test_only_new_ids_over_a_returned_cache(model, chunk):
    """Then the mask and the kinds say how much is cached; without kinds only causal attention can do it."""
    first = prompt(model)
    answer = model.generate(**first, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
    image = image_ids(model)
    ids = torch.cat([answer.sequences, torch.tensor([[*image, 25, 26]])], dim=1)
    whole = {"input_ids": ids, "pixel_values": torch.cat([first["pixel_values"], pixels(1)])}
    wanted = greedy(model, whole)
    name = "cache" if "cache" in answer else "past_key_values"
    new = ids[:, answer[name].get_seq_length() :]  # the last answered token is not in the cache yet
    kinds = (ids == model.config.image_token_id).long()
    given = {"attention_mask": torch.ones_like(ids), name: copy.deepcopy(answer[name])}
    given |= {"pixel_values": pixels(1), "prefill_chunk_size": chunk}
    found = model.generate(new, **given, mm_token_type_ids=kinds, max_new_tokens=NEW, do_sample=False)
    assert found[0, -NEW:].tolist() == wanted
    given[name] = answer[name]
    if model.config.attention == "causal":
        found = model.generate(new, **given, max_new_tokens=NEW, do_sample=False)
        assert found[0, -NEW:].tolist() == wanted
    else:
        with pytest.raises(ValueError, match="mm_token_type_ids are missing"):
            model.generate(new, **given, max_new_tokens=NEW, do_sample=False)


@pytest.mark.parametrize(
    "chunk, how", [(None, {"num_beams": 2}), (7, {"num_beams": 2}), (None, {"use_cache": False})]
)
def test_rows_with_different_numbers_of_images_are_answered_as_alone(model, chunk, how):
    """With embeddings in place of ids too."""
    both, alone = several_rows(model)
    kept = {"max_new_tokens": NEW, "do_sample": False, **how}
    alone = [model.generate(**each, **kept)[0, -NEW:].tolist() for each in alone]
    kept["prefill_chunk_size"] = chunk
    assert model.generate(**both, **kept)[:, -NEW:].tolist() == alone
    ids = both.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    assert model.generate(inputs_embeds=embeds, **both, **kept)[:, -NEW:].tolist() == alone


def test_image_features_come_in_transformers_form(model):
    features = model.get_image_features(pixels(3))
    assert features.last_hidden_state.shape == (3, 5, 32) and features.pooler_output.shape == (3, 5, 32)
    asked = model.get_image_features(pixels(3), output_hidden_states=True)
    assert len(asked.hidden_states) == 3 and features.hidden_states is None
    torch.testing.assert_close(asked.pooler_output, features.pooler_output)
    torch.testing.assert_close(
        model.model.multi_modal_projector(features.last_hidden_state), features.pooler_output
    )
    first, second = model.get_image_features(pixels(3), return_dict=False)
    assert torch.equal(first, features.last_hidden_state) and torch.equal(second, features.pooler_output)


@pytest.mark.slow
def test_the_graph_that_torch_exports_gives_the_same_logits(model):
    """As LLaVA of transformers can be exported: without a cache among the outputs."""
    inputs = prompt(model) | {"use_cache": False}
    with torch.no_grad():
        exported = torch.export.export(model, args=(), kwargs=inputs, strict=False).module()
        torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
