"""Text read over kept images equals text and images read together, for decoders of several families."""

import pytest
import torch
from transformers import (
    AutoModel,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

import utils.model  # noqa: F401 (registers the attention)
from chat.generation.reading import growing_cache
from chat.image_kv.encoder import CachedImageKV, CannotReuseKV, ImageKVEncoder, SharedImages, causal_mask
from utils.model.computed_rows import ROWS, ComputedRows, picks_rows, text_rows
from utils.model.configuration_visual_chat import IMAGE_LAYERS
from utils.model.mmca_layout import NO_MASK

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attn_implementation": "mmca",
    "pad_token_id": 0,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "llama 3": LlamaConfig(**SHAPE, rope_parameters=LLAMA_3),
    "dynamic": LlamaConfig(**SHAPE, rope_parameters=DYNAMIC),
    "yarn": LlamaConfig(**SHAPE, rope_parameters=YARN),
    "qwen 3": Qwen3Config(**SHAPE, head_dim=32),
    "phi 3, part of each head": Phi3Config(**SHAPE, partial_rotary_factor=0.5),
}
IMAGE = 5  # tokens
# Kinds of the tokens of a row: text before, between and behind images, images first and last.
LAYOUTS = {
    "between": [0] * 3 + [1] * IMAGE + [0] * 4 + [1] * IMAGE * 2 + [0] * 6,
    "first": [1] * IMAGE + [0] * 5,
    "far": [0] * 200 + [1] * IMAGE + [0] * 250 + [1] * IMAGE + [0] * 2,
    "none": [0] * 7,
}


def decoder_of(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


@torch.inference_mode()
def fresh(decoder, embedded: torch.Tensor, kinds: torch.Tensor, image_layers: str = "full") -> torch.Tensor:
    """Hidden states [1, T, D] of the text, everything read together."""
    assert picks_rows(decoder)
    is_text = kinds == 0
    rows = ComputedRows(None, image_layers, is_text, text_rows(is_text, int(kinds.sum())))
    return decoder(
        inputs_embeds=embedded,
        attention_mask=torch.ones_like(kinds),
        mm_token_type_ids=kinds,
        use_cache=False,
        **{ROWS: rows},
    ).last_hidden_state[:, kinds[0] == 0]


@torch.inference_mode()
def over_kept(
    decoder, embedded: torch.Tensor, kinds: torch.Tensor, pieces: list[int], image_layers: str = "full"
) -> torch.Tensor:
    """The same, images first and by themselves, then text in pieces of these lengths."""
    encoder = ImageKVEncoder(decoder, image_layers)
    is_image = kinds[0] == 1
    keys, values = [], []
    if is_image.any():
        states = encoder.compute(embedded[0, is_image].unflatten(0, (-1, IMAGE)))
        rotations = encoder.rotations(is_image.nonzero().T)
        for layer in range(len(decoder.layers)):
            keys.append(encoder.rotate(torch.cat([each.keys[layer] for each in states], 1)[None], rotations))
            values.append(torch.cat([each.values[layer] for each in states], 1)[None])
    cache, hidden, read = growing_cache(), [], 0
    places = (~is_image).nonzero().T  # [1, T]
    for rows in pieces:
        now = places[:, read : read + rows]
        seen = now - torch.arange(read, read + rows)
        images = [SharedImages(keys, values, seen=seen)] if keys else []
        beside = CachedImageKV(images, causal_mask(rows, read + rows, now.device))
        hidden.append(
            decoder(
                inputs_embeds=embedded[:, now[0]],
                attention_mask=NO_MASK,
                position_ids=now,
                past_key_values=cache,
                use_cache=True,
                image_kv=beside,
            ).last_hidden_state
        )
        read += rows
    return torch.cat(hidden, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("image_layers", IMAGE_LAYERS)
def test_text_over_kept_images_equals_everything_together(image_layers, family, layout):
    decoder = decoder_of(FAMILIES[family])
    kinds = torch.tensor([LAYOUTS[layout]])
    embedded = torch.randn(1, kinds.shape[1], 64, generator=torch.Generator().manual_seed(1))
    expected = fresh(decoder, embedded, kinds, image_layers)
    text = int((kinds == 0).sum())
    for pieces in ([text], [1, text - 2, 1]):
        found = over_kept(decoder, embedded, kinds, pieces, image_layers)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_states_in_half_precision_are_rotated_as_the_decoder_does_it():
    decoder = decoder_of(FAMILIES["llama 3"]).bfloat16()
    encoder = ImageKVEncoder(decoder)
    features = torch.randn(1, IMAGE, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    places = torch.arange(300, 300 + IMAGE)
    with torch.inference_mode():
        there = encoder._forward(features[0], places)
        kept = encoder.compute(features)[0]
        rotations = encoder.rotations(places[None])
        for layer, (keys, values) in enumerate(there):
            assert torch.equal(encoder.rotate(kept.keys[layer][None], rotations), keys)  # bit for bit
            assert torch.equal(kept.values[layer][None], values)


FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3] * 2, "long_factor": [2.0, 3.0, 4.0, 5.0] * 2}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **FACTORS}


@pytest.mark.parametrize(
    "config, reach",
    [
        (FAMILIES["llama 3"], 10**9),
        (FAMILIES["dynamic"], 512),
        (MistralConfig(**SHAPE, sliding_window=100), 100),
        (MistralConfig(**SHAPE, sliding_window=None), 10**9),
        (Qwen2Config(**SHAPE, sliding_window=100), 10**9),  # not in use
        (Phi3Config(**SHAPE, rope_parameters=LONG, original_max_position_embeddings=64), 64),
    ],
)
def test_windows_and_frequencies_that_change_limit_how_far_states_can_be_moved(config, reach):
    assert min(ImageKVEncoder(decoder_of(config)).reach, 10**9) == reach


def test_a_decoder_that_places_tokens_otherwise_is_refused():
    learned = GPT2Config(n_embd=64, n_head=4, n_layer=2, attn_implementation="mmca")
    with pytest.raises(CannotReuseKV, match="rotary"):
        ImageKVEncoder(decoder_of(learned))
    decoder = decoder_of(FAMILIES["llama"])
    turn = decoder.rotary_emb.forward
    decoder.rotary_emb.forward = lambda x, position_ids: turn(x, position_ids + 1)  # 0 is no longer unrotated
    with pytest.raises(CannotReuseKV, match="another way"):
        ImageKVEncoder(decoder)


def test_states_own_their_memory():
    encoder = ImageKVEncoder(decoder_of(FAMILIES["llama"]))
    for states in encoder.compute(torch.randn(3, IMAGE, 64)):
        tensors = (*states.keys, *states.values, states.summary)
        memory = sum(each.untyped_storage().nbytes() for each in tensors)
        assert states.nbytes == memory == (2 * 3 * IMAGE * 2 * 16 + 64) * 4
