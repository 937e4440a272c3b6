"""Stock decoders of transformers run "mmca" by configuration alone."""

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import utils.model.mmca  # noqa: F401 (registers the attention)
from tests import tiny

SHAPE = dict(
    vocab_size=50,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    attn_implementation="mmca",
    **tiny.SHAPE,
)
DECODERS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral, sliding": (MistralForCausalLM, MistralConfig, {"sliding_window": 5}),
}
KINDS = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0]])


def make(name):
    model, config, changes = DECODERS[name]
    torch.manual_seed(0)
    return model(config(**SHAPE, **changes)).eval()


@pytest.fixture(params=DECODERS)
def decoder(request):
    return make(request.param)


def embeddings(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, KINDS.shape[1], SHAPE["hidden_size"], generator=generator)


@pytest.mark.parametrize("padding", [0, 3])
def test_decoding_token_by_token_equals_prefill(decoder, padding):
    """With padding on the left of the second row, as in batched generation."""
    inputs = embeddings()
    mask = torch.ones_like(KINDS)
    mask[1, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        whole = decoder(
            inputs_embeds=inputs, attention_mask=mask, mm_token_type_ids=KINDS, position_ids=positions
        ).logits
        cache = DynamicCache(config=decoder.config)
        steps = [
            decoder(
                inputs_embeds=inputs[:, i : i + 1],
                attention_mask=mask[:, : i + 1],
                mm_token_type_ids=KINDS[:, : i + 1],
                position_ids=positions[:, i : i + 1],
                past_key_values=cache,
            ).logits
            for i in range(KINDS.shape[1])
        ]
    decoded = torch.cat(steps, dim=1)
    assert decoded.isfinite().all()
    torch.testing.assert_close(decoded[mask == 1], whole[mask == 1], atol=1e-5, rtol=1e-5)


def test_several_tokens_after_a_cache_equal_prefill(decoder):
    """As when a chat goes on: a new question with a new image over what was read before."""
    inputs = embeddings()
    with torch.no_grad():
        whole = decoder(inputs_embeds=inputs, mm_token_type_ids=KINDS).logits
        cache = DynamicCache(config=decoder.config)
        decoder(inputs_embeds=inputs[:, :4], mm_token_type_ids=KINDS[:, :4], past_key_values=cache)
        rest = decoder(inputs_embeds=inputs[:, 4:], mm_token_type_ids=KINDS, past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 4:], atol=1e-5, rtol=1e-5)
