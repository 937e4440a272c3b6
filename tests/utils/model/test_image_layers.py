"""What image tokens go through in the decoder's layers: a choice of the configuration."""

import pytest

from tests.utils.model.conftest import clip_vision_config, llama_config
from utils.model import VisualChatConfig


def config(**fields) -> VisualChatConfig:
    return VisualChatConfig(vision_config=clip_vision_config(), text_config=llama_config(), **fields)


def test_a_configuration_of_before_means_what_was_published():
    fields = config().to_dict()
    del fields["image_layers"], fields["image_gate"]
    old = VisualChatConfig.from_dict(fields)
    assert (old.image_layers, old.image_gate) == ("full", "none")


def test_choices_are_saved(tmp_path):
    config(attention="mmca", image_layers="none", image_gate="head").save_pretrained(tmp_path)
    again = VisualChatConfig.from_pretrained(tmp_path)
    assert (again.attention, again.image_layers, again.image_gate) == ("mmca", "none", "head")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"image_layers": "some"}, "image_layers is 'some'; choose one of full, no_mlp, none"),
        ({"image_gate": "layer"}, "image_gate is 'layer'; choose one of none, head"),
        ({"attention": "causal", "image_layers": "none"}, "image_layers none needs attention mmca or cross"),
        ({"attention": "cross", "image_gate": "head"}, "image_gate head needs attention mmca"),
        ({"attention": "causal", "image_gate": "head"}, "image_gate head needs attention mmca"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(fields, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        config(**fields)
    assert "\n" not in str(caught.value)
