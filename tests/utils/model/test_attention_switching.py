"""transformers' `attn_implementation`: the attention that the configuration names is the one that runs."""

import copy

import pytest
import torch

from tests.tiny import visual_chat
from utils.model import VisualChatForConditionalGeneration
from utils.model.pretrained_encoders import vision_config_of

pytestmark = pytest.mark.integration

IDS = torch.tensor([[1, 5, *[49] * 5, 6, 7, *[49] * 5, 8, 9]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, pixel_values=PIXELS).logits


@pytest.fixture(scope="module")
def wanted():
    """The logits of the same weights under each attention."""
    return {attention: logits(visual_chat(attention=attention)) for attention in ("mmca", "cross", "causal")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switched")
    for attention in ("mmca", "cross", "causal"):
        visual_chat(attention=attention).save_pretrained(folder / attention)
    return folder


def switched(entrance, attention, asked, folders):
    """A model of an attention after transformers was asked for an implementation."""
    if entrance == "set_attn_implementation":
        model = visual_chat(attention=attention)
        model.set_attn_implementation(asked)
        return model
    if entrance == "from_pretrained":
        return VisualChatForConditionalGeneration.from_pretrained(
            folders / attention, attn_implementation=asked
        )
    model = visual_chat(attention=attention)
    other = VisualChatForConditionalGeneration._from_config(
        copy.deepcopy(model.config), attn_implementation=asked
    )
    other.load_state_dict(model.state_dict())
    return other.eval()


ENTRANCES = ("set_attn_implementation", "from_pretrained", "from_config")


@pytest.mark.parametrize("asked", ["eager", "sdpa", "mmca", "cross"])
@pytest.mark.parametrize("attention", ["mmca", "cross", "causal"])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_the_configuration_says_what_is_computed(entrance, attention, asked, folders, wanted):
    """A stock name is the encoder's, and a causal decoder's; ours are the decoder's."""
    model = switched(entrance, attention, asked, folders)
    runs = asked if asked in ("mmca", "cross") else attention
    assert model.config.attention == runs
    torch.testing.assert_close(logits(model), wanted[runs], atol=1e-5, rtol=1e-5)
    decoder, encoder = model.config.text_config, model.config.vision_config
    assert decoder is model.model.language_model.config
    stock = asked if asked in ("eager", "sdpa") else "sdpa"
    assert decoder._attn_implementation == (stock if runs == "causal" else runs)
    assert encoder._attn_implementation == model.model.vision_tower.config._attn_implementation == stock
    assert model.config.to_dict()["attention"] == runs


@pytest.mark.parametrize("asked", ["eager", "sdpa", "flex_attention", "mmca"])
@pytest.mark.parametrize("encoder", ["open_clip", "qwen_vl"])
def test_an_encoder_computes_what_it_can(encoder, asked, encoder_folders):
    config = copy.deepcopy(visual_chat(attention="mmca").config)
    config.vision_config = vision_config_of(str(encoder_folders[encoder]))
    model = VisualChatForConditionalGeneration._from_config(config, attn_implementation=asked)
    model.set_attn_implementation(asked)
    assert model.config.attention == model.config.text_config._attn_implementation == "mmca"
    own = "sdpa" if encoder == "open_clip" or asked == "mmca" else asked  # Qwen-VL's layers are CLIP's
    assert model.model.vision_tower.config._attn_implementation == own


@pytest.mark.parametrize("entrance", ENTRANCES[:2])
def test_parts_are_switched_by_name(entrance, folders, wanted):
    for attention, asked in (
        ("mmca", {"vision_config": "eager"}),
        ("causal", {"text_config": "eager"}),
        ("cross", {"text_config": "mmca", "vision_config": "eager"}),
    ):
        model = switched(entrance, attention, asked, folders)
        runs = "causal" if attention == "causal" else "mmca"
        assert model.config.attention == runs
        torch.testing.assert_close(logits(model), wanted[runs], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text_config": "sdpa"}, "decoder computes mmca, and sdpa would make it a causal one"),
        ({"vision_config": "mmca"}, "mmca and cross are attentions of the decoder"),
        ("no_such", "no_such"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(asked, message, folders, wanted):
    with pytest.raises(ValueError, match=message):
        switched("from_pretrained", "mmca", asked, folders)
    model = visual_chat(attention="mmca")
    with pytest.raises(ValueError, match=message):
        model.set_attn_implementation(asked)
    assert torch.equal(logits(model), wanted["mmca"])


@pytest.mark.parametrize(
    ("attention", "computes"), [("mmca", "sdpa"), ("mmca", "eager"), ("causal", "mmca"), ("mmca", "cross")]
)
def test_a_decoder_switched_behind_the_model_s_back_is_found(attention, computes):
    model = visual_chat(attention=attention)
    model.model.language_model.set_attn_implementation(computes)
    with pytest.raises(ValueError, match=f"says attention {attention}, but the decoder computes {computes}"):
        logits(model)
